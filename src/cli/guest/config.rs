//! The configuration of a guest in the format of `wg-quick`, which the WireGuard apps read too. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use zeroize::Zeroizing;

use crate::model::WireGuardKey;

/// The maximum size of a configuration in bytes. A code with more is hard to read for the camera of a phone.
pub(super) const MAX_CONFIG: usize = 400;
/// What stands in the place of a private key that never left its device.
const ON_DEVICE: &str = "PUT-THE-PRIVATE-KEY-OF-THE-DEVICE-HERE";

/// What a configuration is made of.
pub(super) struct GuestConfig {
    /// None if the private key never left the device.
    pub(super) private_key: Option<Zeroizing<[u8; 32]>>,
    pub(super) preshared_key: Zeroizing<[u8; 32]>,
    pub(super) addresses: (Ipv4Addr, Ipv6Addr),
    /// The DNS address of the mesh.
    pub(super) dns: Ipv4Addr,
    /// The key of the door's tunnel.
    pub(super) door: WireGuardKey,
    /// The prefixes of the mesh.
    pub(super) prefixes: [IpNet; 2],
    pub(super) endpoint: SocketAddr,
}

impl GuestConfig {
    /// The text. It has a secret in it.
    pub(super) fn text(&self) -> Zeroizing<String> {
        let private = match &self.private_key {
            Some(key) => base64_of(key),
            None => Zeroizing::new(ON_DEVICE.to_owned()),
        };
        let (v4, v6) = self.addresses;
        let [prefix, other] = self.prefixes;
        let text = Zeroizing::new(format!(
            "[Interface]\n\
             PrivateKey = {}\n\
             Address = {}, {}\n\
             DNS = {}\n\
             [Peer]\n\
             PublicKey = {}\n\
             PresharedKey = {}\n\
             AllowedIPs = {prefix}, {other}\n\
             Endpoint = {}\n\
             PersistentKeepalive = 25\n",
            *private,
            IpNet::from(IpAddr::V4(v4)),
            IpNet::from(IpAddr::V6(v6)),
            self.dns,
            self.door,
            *base64_of(&self.preshared_key),
            self.endpoint,
        ));
        if text.len() <= MAX_CONFIG {
            return text;
        }
        // The spaces are for people. Long addresses of IPv6 leave no room for them.
        Zeroizing::new(text.replace(" = ", "=").replace(", ", ","))
    }
}

fn base64_of(key: &[u8; 32]) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(key))
}

/// The text as a QR code of half blocks, for a terminal. Dark parts of the code are spaces, since most terminals are dark.
///
/// # Errors
/// The text is too long.
pub(super) fn qr_code(text: &str) -> Result<Zeroizing<String>, qrcode::types::QrError> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L)?;
    let image = code
        .render::<Dense1x2>()
        .dark_color(Dense1x2::Light)
        .light_color(Dense1x2::Dark)
        .build();
    Ok(Zeroizing::new(image))
}

#[cfg(test)]
mod app_grammar;

#[cfg(test)]
mod tests {
    use super::app_grammar::{Read, ReadPeer, read};
    use super::*;

    fn config(endpoint: &str) -> GuestConfig {
        GuestConfig {
            private_key: Some(Zeroizing::new([1; 32])),
            preshared_key: Zeroizing::new([2; 32]),
            addresses: (
                Ipv4Addr::new(10, 210, 255, 254),
                "fd12:3456:789a:ffff::fe".parse().expect("a literal"),
            ),
            dns: Ipv4Addr::new(10, 210, 0, 53),
            door: WireGuardKey([3; 32]),
            prefixes: [
                "10.210.0.0/16".parse().expect("a literal"),
                "fd12:3456:789a::/48".parse().expect("a literal"),
            ],
            endpoint: endpoint.parse().expect("a literal"),
        }
    }

    #[test]
    fn a_configuration_has_what_wg_quick_reads_and_is_small() {
        let text = config("203.0.113.7:51820").text();
        assert_eq!(
            *text,
            "[Interface]\n\
             PrivateKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n\
             Address = 10.210.255.254/32, fd12:3456:789a:ffff::fe/128\n\
             DNS = 10.210.0.53\n\
             [Peer]\n\
             PublicKey = AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\n\
             PresharedKey = AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n\
             AllowedIPs = 10.210.0.0/16, fd12:3456:789a::/48\n\
             Endpoint = 203.0.113.7:51820\n\
             PersistentKeepalive = 25\n"
        );
        assert!(text.len() <= MAX_CONFIG, "{}", text.len());
        let long = config("[2001:1db8:1111:2222:3333:4444:5555:6666]:51820").text();
        assert!(long.len() <= MAX_CONFIG, "{}", long.len());
        assert!(long.contains("\nEndpoint=[2001:1db8:1111:2222:3333:4444:5555:6666]:51820\n"));
    }

    #[test]
    fn without_a_private_key_its_place_is_named() {
        let config = GuestConfig {
            private_key: None,
            ..config("203.0.113.7:51820")
        };
        assert!(config.text().contains(ON_DEVICE));
    }

    #[test]
    fn a_code_has_one_line_for_two_rows_and_a_quiet_zone_around_it() {
        let text = config("203.0.113.7:51820").text();
        let image = qr_code(&text).expect("it is short");
        let lines: Vec<&str> = image.lines().collect();
        let width = lines.first().map_or(0, |line| line.chars().count());
        assert!(lines.iter().all(|line| line.chars().count() == width));
        assert_eq!(lines.len(), width.div_ceil(2));
        assert!(width <= 80, "{width} columns");
        let is_quiet = |line: &&str| line.chars().all(|c| c == '\u{2588}');
        assert_eq!(lines.iter().take_while(|line| is_quiet(line)).count(), 2);
    }

    /// What an app is to read from a configuration.
    fn meant(config: &GuestConfig) -> Read {
        let (v4, v6) = config.addresses;
        let private_key = config.private_key.as_ref().expect("it was made here");
        Read {
            private_key: **private_key,
            addresses: vec![IpAddr::V4(v4).into(), IpAddr::V6(v6).into()],
            dns: vec![config.dns.into()],
            peers: vec![ReadPeer {
                public_key: config.door.0,
                preshared_key: Some(*config.preshared_key),
                allowed: config.prefixes.to_vec(),
                endpoint: Some(config.endpoint),
                keepalive: Some(25),
            }],
        }
    }

    #[test]
    fn the_apps_for_android_and_ios_read_what_was_meant() {
        for endpoint in [
            "203.0.113.7:51820",
            "[2001:db8::7]:51820",
            "[2001:1db8:1111:2222:3333:4444:5555:6666]:51820",
        ] {
            let config = config(endpoint);
            assert_eq!(read(&config.text()), Ok(meant(&config)), "{endpoint}");
        }
    }

    #[test]
    fn what_one_of_the_apps_refuses_is_not_taken_for_a_configuration() {
        let good = config("203.0.113.7:51820").text();
        for (part, other) in [
            ("[Interface]", "[Interfaces]"),
            ("[Interface]\n", ""),
            ("[Interface]", "[Interface]\n[Interface]"),
            ("PrivateKey", "Private-Key"),
            ("PrivateKey = AQEB", "PrivateKey = AQE"),
            ("AQEBAQE=", "AQEBAQF="),
            ("PublicKey", "Address"),
            ("PublicKey", "PresharedKey"),
            ("/48", "/129"),
            ("10.210.0.0/16,", "10.210.0.0/16,,"),
            ("Endpoint = ", "Endpoint = https://"),
            (":51820", ""),
            ("PersistentKeepalive = 25", "PersistentKeepalive = 70000"),
            ("PersistentKeepalive = 25", "PersistentKeepalive ="),
            ("PersistentKeepalive = 25", "PersistentKeepalive 25"),
        ] {
            let bad = good.replace(part, other);
            assert_ne!(bad, *good, "{part}");
            assert!(read(&bad).is_err(), "{bad}");
        }
        let key = WireGuardKey([3; 32]);
        let twice = format!("{}[Peer]\nPublicKey = {key}\n", *good);
        assert!(read(&twice).is_err(), "{twice}");
        // Nor does an app take a configuration in which the private key is still missing.
        let missing = GuestConfig {
            private_key: None,
            ..config("203.0.113.7:51820")
        };
        assert!(read(&missing.text()).is_err());
    }

    /// What a camera reads from a code on a dark terminal, where full and half blocks are light.
    fn read_back(image: &str) -> String {
        let row = |line: &str, light: [char; 2]| -> Vec<bool> {
            line.chars().map(|c| light.contains(&c)).collect()
        };
        let rows = image.lines().flat_map(|line| {
            let upper = row(line, ['\u{2588}', '\u{2580}']);
            [upper, row(line, ['\u{2588}', '\u{2584}'])]
        });
        let rows: Vec<Vec<bool>> = rows.collect();
        let (size, scale) = (rows[0].len(), 4);
        let light = |x: usize, y: usize| if rows[y / scale][x / scale] { 255 } else { 0 };
        let mut picture =
            rqrr::PreparedImage::prepare_from_greyscale(size * scale, size * scale, light);
        let found = picture.detect_grids();
        assert_eq!(found.len(), 1);
        found[0].decode().expect("a code").1
    }

    #[test]
    fn a_decoder_reads_the_configuration_back_from_its_code() {
        for endpoint in [
            "203.0.113.7:51820",
            "[2001:1db8:1111:2222:3333:4444:5555:6666]:51820",
        ] {
            let text = config(endpoint).text();
            let image = qr_code(&text).expect("it is short");
            assert_eq!(read_back(&image), *text);
        }
    }
}
