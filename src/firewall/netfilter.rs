//! Messages of the kernel's netfilter netlink family, as far as meshd needs them: the table that a notification of nftables is about,
//! and the attributes of tracked connections. Pure.
//!
//! Decision: the crate netlink-packet-netfilter (0.4) is not used. To delete a connection, the kernel needs its original tuple, its zone and
//! its id exactly as the dump had them. The crate has no variants for zone and id, and it decodes tuples into values that have to be encoded
//! again. It allocates for each attribute of each connection, and a busy host has millions of them, while this file reads them in place.
//! It also does not know the messages of `nft destroy`, so that notifications would still be read here by hand.

/// Header of a netlink message: length, type, flags, sequence, port.
pub(super) const HEADER: usize = 16;
/// Header of netfilter's messages: family, version, resource.
pub(super) const FAMILY_HEADER: usize = 4;
/// `NLA_TYPE_MASK`: without the marks for nested and for byte order.
const KIND: u16 = 0x3fff;
/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
/// `NFT_MSG_NEWGEN`: a transaction is over; names no table.
const NEW_GENERATION: u16 = 15;
/// In messages about tables, chains, rules, sets and elements alike, attribute 1 is the table.
const TABLE_NAME: u16 = 1;
/// `NFPROTO_IPV4`.
pub(super) const IPV4: u8 = 2;

/// Whom a notification is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Touched {
    /// Neither.
    Nothing,
    /// A table of ours.
    Ours,
    /// The table in which the container engine has its chains.
    Filter,
}

/// A message: type, flags, and what follows the header.
pub(super) type Message<'a> = (u16, u16, &'a [u8]);

/// The messages in a datagram; stops at what is cut short.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(word(rest, 0)?).ok()?;
        let (kind, flags) = (half(rest, 4)?, half(rest, 6)?);
        let body = rest.get(HEADER..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, flags, body))
    })
}

/// The attributes in `bytes`: their kinds and values; stops at what is cut short.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(half(rest, 0)?);
        let kind = half(rest, 2)? & KIND;
        let value = rest.get(4..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of `kind`.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// Appends an attribute.
pub(super) fn push_attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(aligned(message.len()), 0);
}

/// A message of netfilter's with its attributes.
pub(super) fn message(kind: u16, flags: u16, sequence: u32, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + FAMILY_HEADER + attributes.len()).unwrap_or(u32::MAX);
    let mut message = Vec::new();
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(&[IPV4, 0, 0, 0]);
    message.extend_from_slice(attributes);
    message
}

/// Whom the notifications in a datagram are about; ours before the other.
pub(super) fn touched(datagram: &[u8], table: &str) -> Touched {
    let mut found = Touched::Nothing;
    for (kind, _, body) in messages(datagram) {
        if kind >> 8 != NFTABLES || kind & 0xff == NEW_GENERATION {
            continue;
        }
        let name = body
            .get(FAMILY_HEADER..)
            .and_then(|bytes| attribute(bytes, TABLE_NAME))
            .map(|name| name.strip_suffix(&[0]).unwrap_or(name));
        if name == Some(table.as_bytes()) {
            return Touched::Ours;
        }
        if name == Some(b"filter") && body.first() == Some(&IPV4) {
            found = Touched::Filter;
        }
    }
    found
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn about(kind: u16, name: &[u8]) -> Vec<u8> {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, 2, b"x");
        push_attribute(&mut attributes, TABLE_NAME, name);
        message(NFTABLES << 8 | kind, 0, 0, &attributes)
    }

    #[test]
    fn notifications_about_our_table_or_the_engines_are_told_from_others() {
        assert_eq!(touched(&about(1, b"meshd\0"), "meshd"), Touched::Ours);
        assert_eq!(touched(&about(7, b"filter\0"), "meshd"), Touched::Filter);
        assert_eq!(touched(&about(7, b"meshd2\0"), "meshd"), Touched::Nothing);
        assert_eq!(
            touched(&about(NEW_GENERATION, b"meshd\0"), "meshd"),
            Touched::Nothing
        );
        let both = [about(1, b"filter\0"), about(1, b"meshd\0")].concat();
        assert_eq!(touched(&both, "meshd"), Touched::Ours);
        let foreign = message(0x0100, 0, 0, &[]);
        assert_eq!(touched(&foreign, "meshd"), Touched::Nothing);
    }

    proptest! {
        #[test]
        fn nothing_that_is_received_makes_it_panic_or_go_on_for_ever(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
            prop_assert!(attributes(&bytes).count() <= bytes.len());
            let _ = touched(&bytes, "meshd");
        }
    }
}
