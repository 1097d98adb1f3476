//! One question to one upstream: what is sent, and whether what comes is its answer. Pure: the caller brings the
//! randomness.
//!
//! A forger must guess the port, the ID of the message and the case of each letter of the name (the "0x20" bits of
//! draft-vixie-dnsext-dns0x20). Some servers cannot take mixed case or EDNS: [`Form`] is how a question is written.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData};

use super::super::query::Question;
use super::super::transport::MAX_UDP;
use super::answer::Forwarded;
use super::received::tidied;

/// How a question is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::dns) struct Form {
    /// The case of each letter is random. Otherwise the name is as the client wrote it.
    pub(in crate::dns) mixed: bool,
    /// The question has an OPT record (RFC 6891).
    pub(in crate::dns) edns: bool,
}

/// A question as it is sent.
#[derive(Debug)]
pub(in crate::dns) struct SentQuery {
    message: Message,
    form: Form,
    dnssec_ok: bool,
}

/// What came.
#[derive(Debug)]
pub(in crate::dns) enum Received {
    /// The answer.
    Answer(Forwarded),
    /// The answer did not fit into a datagram.
    Cut,
    /// The reply has the name in another case than the question.
    LostCase,
    /// The upstream replied with an error, such as SERVFAIL or REFUSED.
    Failed,
    /// The upstream replied that it does not support EDNS.
    NoEdns,
    /// Something else: the answer may still come.
    Stray,
}

impl SentQuery {
    /// Asks `asked`; `random` makes its ID and the case of its letters.
    pub(in crate::dns) fn new(asked: &Question, random: [u64; 2], form: Form) -> Option<Self> {
        let mut message = Message::new(random[0] as u16, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = asked.checking_disabled;
        message.metadata.authentic_data = asked.authentic;
        let name = match form.mixed {
            true => mixed(&asked.name, random[1])?,
            false => asked.name.clone(),
        };
        message.add_query(Query::query(name, asked.record_type));
        if form.edns {
            let mut own = Edns::new();
            own.set_max_payload(MAX_UDP)
                .set_version(0)
                .set_dnssec_ok(asked.dnssec_ok);
            message.set_edns(own);
        }
        Some(Self {
            message,
            form,
            dnssec_ok: asked.dnssec_ok,
        })
    }

    /// Its octets.
    pub(in crate::dns) fn octets(&self) -> Option<Vec<u8>> {
        self.message.to_vec().ok()
    }

    /// Takes in what came. A `stream` cannot be forged from aside, and is never cut.
    pub(in crate::dns) fn handle_reply(&self, octets: &[u8], stream: bool) -> Received {
        let id = self.message.metadata.id.to_be_bytes();
        // Of another message not even a fault counts.
        if octets.get(..2) != Some(&id[..]) || octets.get(2).is_none_or(|flags| flags & 0x80 == 0) {
            return Received::Stray;
        }
        let Ok(reply) = Message::from_vec(octets) else {
            return if stream {
                Received::Failed
            } else {
                Received::Stray
            };
        };
        let code = reply.metadata.response_code;
        // RFC 6891 section 7 names FORMERR, old servers also return NOTIMP. 16 is BADVERS, or BADSIG to a signed question.
        let no_edns = matches!(code, ResponseCode::FormErr | ResponseCode::NotImp)
            || u16::from(code) == u16::from(ResponseCode::BADVERS);
        let no_edns = no_edns && self.form.edns;
        let ([asked], [repeated]) = (self.message.queries.as_slice(), reply.queries.as_slice())
        else {
            // An old server does not repeat a question that it cannot parse.
            return match reply.queries.is_empty() && no_edns {
                true => Received::NoEdns,
                false => Received::Stray,
            };
        };
        if asked != repeated {
            return Received::Stray;
        }
        if !stream && self.form.mixed && !asked.name().eq_case(repeated.name()) {
            return Received::LostCase;
        }
        if !stream && reply.metadata.truncation {
            return Received::Cut;
        }
        match code {
            ResponseCode::NoError | ResponseCode::NXDomain => {
                Received::Answer(tidied(asked.name(), self.answer(reply)))
            }
            _ if no_edns => Received::NoEdns,
            _ => Received::Failed,
        }
    }

    fn answer(&self, reply: Message) -> Forwarded {
        let negative =
            reply.answers.is_empty() || reply.metadata.response_code == ResponseCode::NXDomain;
        let authority = reply.authorities.into_iter();
        Forwarded {
            code: reply.metadata.response_code,
            authentic: reply.metadata.authentic_data,
            answers: reply.answers,
            // Who serves the name is of no use to a client; that there is none, and the proof of it, is.
            authority: authority
                .filter(|r| self.dnssec_ok || (negative && matches!(r.data, RData::SOA(_))))
                .collect(),
            ..Forwarded::default()
        }
    }
}

/// The name in mixed case.
fn mixed(name: &Name, random: u64) -> Option<Name> {
    let mut bits = random;
    let labels = name.iter().map(|label| {
        let flip = |octet: &u8| {
            bits = bits.rotate_left(1);
            let upper = bits & 1 == 1 && octet.is_ascii_alphabetic();
            if upper {
                octet.to_ascii_uppercase()
            } else {
                octet.to_ascii_lowercase()
            }
        };
        label.iter().map(flip).collect::<Vec<u8>>()
    });
    let labels: Vec<Vec<u8>> = labels.collect();
    let mut name = Name::from_labels(labels).ok()?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{Record, RecordType};

    fn asked() -> Question {
        Question::new(
            Name::from_ascii("www.example.org.").expect("a literal"),
            RecordType::A,
        )
    }

    fn question() -> SentQuery {
        SentQuery::new(&asked(), [4711, 0x5555_5555_5555_5555], FULL).expect("a name")
    }

    const FULL: Form = Form {
        mixed: true,
        edns: true,
    };

    /// The right reply, changed.
    fn replied(change: impl FnOnce(&mut Message)) -> Received {
        let question = question();
        let mut reply = Message::response(4711, OpCode::Query);
        reply.queries.clone_from(&question.message.queries);
        let data = RData::A(std::net::Ipv4Addr::new(192, 0, 2, 1).into());
        reply.add_answer(Record::from_rdata(asked().name, 60, data));
        change(&mut reply);
        question.handle_reply(&reply.to_vec().expect("a small message"), false)
    }

    #[test]
    fn the_case_of_the_name_is_drawn_anew_for_each_question() {
        let name = |random| {
            let question = SentQuery::new(&asked(), [1, random], FULL).expect("a name");
            question.message.queries[0].name().to_string()
        };
        assert_eq!(name(0), "www.example.org.");
        assert_eq!(name(u64::MAX), "WWW.EXAMPLE.ORG.");
        assert_ne!(name(0x1234_5678_9abc_def0), name(0x0fed_cba9_8765_4321));
    }

    #[test]
    fn only_the_reply_to_the_question_counts() {
        assert!(matches!(replied(|_| ()), Received::Answer(f) if f.answers.len() == 1));
        assert!(matches!(replied(|m| m.metadata.id = 4712), Received::Stray));
        assert!(matches!(
            replied(|m| m.metadata.message_type = MessageType::Query),
            Received::Stray
        ));
        let other = || Name::from_ascii("www.example.net.").expect("a literal");
        assert!(matches!(
            replied(|m| m.queries = vec![Query::query(other(), RecordType::A)]),
            Received::Stray
        ));
        assert!(matches!(
            replied(|m| m.queries = vec![Query::query(asked().name, RecordType::A)]),
            Received::LostCase
        ));
        assert!(matches!(
            replied(|m| m.metadata.truncation = true),
            Received::Cut
        ));
        assert!(matches!(
            replied(|m| m.metadata.response_code = ResponseCode::Refused),
            Received::Failed
        ));
        assert!(matches!(
            replied(|m| m.metadata.response_code = ResponseCode::FormErr),
            Received::NoEdns
        ));
    }

    #[test]
    fn an_answer_is_taken_in_with_its_aliases_first_and_its_ttls_bounded() {
        let name = |text: &str| Name::from_ascii(text).expect("a literal");
        let received = replied(|m| {
            let alias = RData::CNAME(hickory_proto::rr::rdata::CNAME(name("cdn.example.net.")));
            m.answers[0].name = name("cdn.example.net.");
            m.answers[0].ttl = u32::MAX;
            m.add_answer(Record::from_rdata(asked().name, 60, alias));
        });
        let Received::Answer(answer) = received else {
            panic!("{received:?}");
        };
        let shown = answer.answers.iter().map(|r| (r.record_type(), r.ttl));
        let shown: Vec<_> = shown.collect();
        assert_eq!(shown, [(RecordType::CNAME, 60), (RecordType::A, 0)]);
    }

    #[test]
    fn each_way_to_refuse_edns_is_recognised_and_only_for_a_question_with_edns() {
        let plain = Form {
            mixed: false,
            edns: false,
        };
        for code in [
            ResponseCode::FormErr,
            ResponseCode::NotImp,
            ResponseCode::BADVERS,
        ] {
            let refused = replied(|m| {
                m.set_edns(Edns::new());
                m.metadata.response_code = code;
            });
            assert!(matches!(refused, Received::NoEdns), "{code}");
            let without_question = replied(|m| {
                m.set_edns(Edns::new());
                m.queries.clear();
                m.metadata.response_code = code;
            });
            assert!(matches!(without_question, Received::NoEdns), "{code}");
            let question = SentQuery::new(&asked(), [4711, 0], plain).expect("a name");
            let mut reply = Message::response(4711, OpCode::Query);
            reply.queries.clone_from(&question.message.queries);
            reply.metadata.response_code = code;
            reply.set_edns(Edns::new());
            let octets = reply.to_vec().expect("a small message");
            let received = question.handle_reply(&octets, false);
            assert!(matches!(received, Received::Failed), "{code}");
        }
    }

    #[test]
    fn a_question_as_the_client_wrote_it_keeps_its_case_and_takes_a_reply_in_any() {
        let written = Question::new(
            Name::from_ascii("Www.example.ORG.").expect("a literal"),
            RecordType::A,
        );
        let plain = Form {
            mixed: false,
            edns: true,
        };
        let question = SentQuery::new(&written, [4711, u64::MAX], plain).expect("a name");
        let sent = question.message.queries[0].name();
        assert_eq!(sent.to_string(), "Www.example.ORG.");
        let mut reply = Message::response(4711, OpCode::Query);
        reply.queries = vec![Query::query(asked().name, RecordType::A)];
        let octets = reply.to_vec().expect("a small message");
        let received = question.handle_reply(&octets, false);
        assert!(matches!(received, Received::Answer(_)));
    }
}
