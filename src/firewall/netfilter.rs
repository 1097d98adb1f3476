//! Messages of the kernel's netfilter netlink family, as far as meshd needs them: the table that a notification of
//! nftables is about, and the form of requests. Pure.
//!
//! Decision: the crate netlink-packet-netfilter (0.4) is not used. To delete a connection, the kernel needs its
//! original tuple, its zone and its id exactly as the dump had them. The crate has no variants for zone and id, and it
//! decodes tuples into values that have to be encoded again. It allocates for each attribute of each connection, and a
//! busy host has millions of connections; `os::netlink` reads attributes in place. The crate also does not know the
//! messages of `nft destroy`, so notifications would still be parsed here.

use crate::os::netlink::{HEADER, Message, attribute, messages};

/// The size of the header of netfilter's messages: family, version, resource.
pub(super) const FAMILY_HEADER: usize = 4;
/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
/// `NFT_MSG_NEWGEN`: the end of a transaction. The message names no table.
const NEW_GENERATION: u16 = 15;
/// Attribute 1 is the table's name in all messages about tables, chains, rules, sets and elements.
const TABLE_NAME: u16 = 1;
/// `NFPROTO_IPV4`.
pub(super) const IPV4: u8 = 2;

/// The table that a notification is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Affected {
    /// Another table.
    Nothing,
    /// A table of meshd.
    OwnTable,
    /// The table `filter`, in which the container engine has its chains.
    FilterTable,
}

/// A netfilter message with its attributes.
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

/// The table that the notifications in a datagram are about. A table of meshd takes precedence over the table `filter`.
pub(super) fn affected(datagram: &[u8], table: &str) -> Affected {
    let mut found = Affected::Nothing;
    for Message { kind, body, .. } in messages(datagram) {
        if kind >> 8 != NFTABLES || kind & 0xff == NEW_GENERATION {
            continue;
        }
        let name = body
            .get(FAMILY_HEADER..)
            .and_then(|bytes| attribute(bytes, TABLE_NAME))
            .map(|name| name.strip_suffix(&[0]).unwrap_or(name));
        if name == Some(table.as_bytes()) {
            return Affected::OwnTable;
        }
        if name == Some(b"filter") && body.first() == Some(&IPV4) {
            found = Affected::FilterTable;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::os::netlink::push_attribute;

    fn about(kind: u16, name: &[u8]) -> Vec<u8> {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, 2, b"x");
        push_attribute(&mut attributes, TABLE_NAME, name);
        message(NFTABLES << 8 | kind, 0, 0, &attributes)
    }

    #[test]
    fn notifications_about_our_table_and_the_engines_are_recognized() {
        assert_eq!(affected(&about(1, b"meshd\0"), "meshd"), Affected::OwnTable);
        assert_eq!(
            affected(&about(7, b"filter\0"), "meshd"),
            Affected::FilterTable
        );
        assert_eq!(affected(&about(7, b"meshd2\0"), "meshd"), Affected::Nothing);
        assert_eq!(
            affected(&about(NEW_GENERATION, b"meshd\0"), "meshd"),
            Affected::Nothing
        );
        let both = [about(1, b"filter\0"), about(1, b"meshd\0")].concat();
        assert_eq!(affected(&both, "meshd"), Affected::OwnTable);
        let foreign = message(0x0100, 0, 0, &[]);
        assert_eq!(affected(&foreign, "meshd"), Affected::Nothing);
    }

    proptest! {
        #[test]
        fn received_bytes_cause_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = affected(&bytes, "meshd");
        }
    }
}
