//! Messages of the kernel's netfilter netlink family, as far as meshd needs them: the table that a notification of
//! nftables is about, the number of its last transaction, and the form of requests. Pure.
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
/// `NFT_MSG_NEWGEN`: the end of a transaction, or the answer to `NFT_MSG_GETGEN`. The message names no table.
const NEW_GENERATION: u16 = 15;
/// `NFT_MSG_GETGEN`.
const GET_GENERATION: u16 = 16;
/// `NFTA_GEN_ID`: the number of the last transaction, big-endian.
const GENERATION_ID: u16 = 1;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// Attribute 1 is the table's name in all messages about tables, chains, rules, sets and elements.
const TABLE_NAME: u16 = 1;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
pub(super) const IPV4: u8 = 2;
pub(super) const IPV6: u8 = 10;
/// `NFPROTO_UNSPEC`: all families.
pub(super) const ALL_FAMILIES: u8 = 0;

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

/// A netfilter message about IPv4, with its attributes.
pub(super) fn message(kind: u16, flags: u16, sequence: u32, attributes: &[u8]) -> Vec<u8> {
    message_of(IPV4, kind, flags, sequence, attributes)
}

/// A netfilter message about an address family, with its attributes.
pub(super) fn message_of(
    family: u8,
    kind: u16,
    flags: u16,
    sequence: u32,
    attributes: &[u8],
) -> Vec<u8> {
    let length = u32::try_from(HEADER + FAMILY_HEADER + attributes.len()).unwrap_or(u32::MAX);
    let mut message = Vec::new();
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(&[family, 0, 0, 0]);
    message.extend_from_slice(attributes);
    message
}

/// The request for the number of the last transaction.
pub(super) fn get_generation() -> Vec<u8> {
    message(NFTABLES << 8 | GET_GENERATION, REQUEST, 0, &[])
}

/// The number of the last transaction, from the answer to that request.
pub(super) fn generation(datagram: &[u8]) -> Option<u32> {
    let is_answer = |message: &Message<'_>| message.kind == NFTABLES << 8 | NEW_GENERATION;
    let answer = messages(datagram).find(is_answer)?;
    let number = attribute(answer.body.get(FAMILY_HEADER..)?, GENERATION_ID)?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
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
        if name == Some(b"filter") && matches!(body.first(), Some(&(IPV4 | IPV6))) {
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
        let mut v6 = about(7, b"filter\0");
        v6[HEADER] = IPV6;
        assert_eq!(affected(&v6, "meshd"), Affected::FilterTable);
        let both = [about(1, b"filter\0"), about(1, b"meshd\0")].concat();
        assert_eq!(affected(&both, "meshd"), Affected::OwnTable);
        let foreign = message(0x0100, 0, 0, &[]);
        assert_eq!(affected(&foreign, "meshd"), Affected::Nothing);
    }

    #[test]
    fn the_number_of_the_last_transaction_is_read_from_its_own_message_only() {
        let mut attributes = Vec::new();
        push_attribute(&mut attributes, GENERATION_ID, &[0, 0, 1, 2]);
        let answer = message(NFTABLES << 8 | NEW_GENERATION, 0, 0, &attributes);
        assert_eq!(generation(&answer), Some(0x0102));
        let other = message(NFTABLES << 8 | 1, 0, 0, &attributes);
        assert_eq!(generation(&[other, answer].concat()), Some(0x0102));
        assert_eq!(generation(&message(NFTABLES << 8, 0, 0, &attributes)), None);
        let mut short = Vec::new();
        push_attribute(&mut short, GENERATION_ID, &[1]);
        let short = message(NFTABLES << 8 | NEW_GENERATION, 0, 0, &short);
        assert_eq!(generation(&short), None);
    }

    proptest! {
        #[test]
        fn received_bytes_cause_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = affected(&bytes, "meshd");
            let _ = generation(&bytes);
        }
    }
}
