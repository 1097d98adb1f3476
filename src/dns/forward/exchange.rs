//! One question to one upstream: the request, and what the response says. Pure, but for the random numbers that hickory draws.
//!
//! A forger must guess the port, the ID of the message and the case of each letter of the name (the "0x20" bits of
//! draft-vixie-dnsext-dns0x20). Some servers do not support mixed case or EDNS: [`Form`] is how a question is written.

use hickory_proto::op::{DnsRequest, DnsRequestOptions, Message, Query, ResponseCode};
use hickory_proto::rr::{RData, RecordType};

use super::super::query::Question;
use super::super::transport::MAX_UDP;
use super::answer::Forwarded;
use super::received::tidied;

/// How a question is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dns) struct Form {
    /// The case of each letter is random. Otherwise the name is as the client wrote it.
    pub(in crate::dns) mixed: bool,
    /// The question has an OPT record (RFC 6891).
    pub(in crate::dns) edns: bool,
}

/// The meaning of a response.
#[derive(Debug)]
pub(in crate::dns) enum Received {
    Answer(Forwarded),
    /// The answer did not fit into a datagram.
    Cut,
    /// The response has the name in another case than the question.
    LostCase,
    /// The upstream returned an error, such as SERVFAIL or REFUSED.
    Failed,
    /// The upstream returned that it does not support EDNS.
    NoEdns,
    /// The response is to another question.
    Stray,
}

/// Returns the request that asks `question`. Its ID and the case of its letters are random.
pub(in crate::dns) fn request(question: &Question, form: Form) -> DnsRequest {
    let mut options = DnsRequestOptions::default();
    options.use_edns = form.edns;
    options.edns_payload_len = MAX_UDP;
    options.edns_set_dnssec_ok = question.dnssec_ok;
    options.recursion_desired = true;
    options.case_randomization = form.mixed;
    let query = Query::query(question.name.clone(), question.record_type);
    let mut request = DnsRequest::from_query(query, options);
    request.metadata.checking_disabled = question.checking_disabled;
    request.metadata.authentic_data = question.authentic;
    request
}

/// Interprets the response to a request with the ID of the request. `stream` says that it was received over a stream, where
/// hickory does not compare the questions and nothing is truncated.
pub(in crate::dns) fn read(
    question: &Question,
    form: Form,
    response: Message,
    stream: bool,
) -> Received {
    let no_edns = form.edns && refuses_edns(&response);
    match response.queries.as_slice() {
        [asked] if *asked.name() == question.name && asked.query_type() == question.record_type => {
        }
        // An old server does not repeat a question that it cannot parse.
        [] if no_edns => return Received::NoEdns,
        _ => return Received::Stray,
    }
    if !stream && response.metadata.truncation {
        return Received::Cut;
    }
    match response.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {
            Received::Answer(tidied(&question.name, answer(question, response)))
        }
        _ if no_edns => Received::NoEdns,
        _ => Received::Failed,
    }
}

/// Returns whether `response` says that the upstream does not support EDNS. RFC 6891 section 7 names FORMERR, and old servers
/// also return NOTIMP. 16 is BADVERS, or BADSIG in the response to a signed question.
pub(super) fn refuses_edns(response: &Message) -> bool {
    let code = response.metadata.response_code;
    matches!(code, ResponseCode::FormErr | ResponseCode::NotImp)
        || u16::from(code) == u16::from(ResponseCode::BADVERS)
}

fn answer(question: &Question, response: Message) -> Forwarded {
    let code = response.metadata.response_code;
    let wanted = question.record_type;
    let mut types = response.answers.iter().map(|record| record.record_type());
    // An alias may lead to a name without records of this type (RFC 2308 section 2.2).
    let has_wanted = types.any(|found| found == wanted || wanted == RecordType::ANY);
    let negative = !has_wanted || code == ResponseCode::NXDomain;
    let authority = response.authorities.into_iter();
    Forwarded {
        code,
        authentic: response.metadata.authentic_data,
        answers: response.answers,
        // A client has no use for the name servers of the zone. It needs the SOA of a negative answer, and the proof.
        authority: authority
            .filter(|r| question.dnssec_ok || (negative && matches!(r.data, RData::SOA(_))))
            .collect(),
        ..Forwarded::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Edns, OpCode};
    use hickory_proto::rr::rdata::{CNAME, SOA};
    use hickory_proto::rr::{Name, Record};

    fn question() -> Question {
        let name = Name::from_ascii("www.example.org.").expect("a literal");
        Question::new(name, RecordType::A)
    }

    const FULL: Form = Form {
        mixed: true,
        edns: true,
    };
    const SIMPLEST: Form = Form {
        mixed: false,
        edns: false,
    };

    /// The right response, changed.
    fn response(change: impl FnOnce(&mut Message)) -> Message {
        let mut response = Message::response(4711, OpCode::Query);
        response.add_query(Query::query(question().name, RecordType::A));
        let data = RData::A(std::net::Ipv4Addr::new(192, 0, 2, 1).into());
        response.add_answer(Record::from_rdata(question().name, 60, data));
        change(&mut response);
        response
    }

    fn received(change: impl FnOnce(&mut Message)) -> Received {
        read(&question(), FULL, response(change), false)
    }

    #[test]
    fn the_case_and_the_id_are_drawn_anew_for_each_request() {
        let drawn = |form| {
            let request = request(&question(), form);
            (request.id, request.queries[0].name().to_string())
        };
        let all: std::collections::BTreeSet<_> = (0..20).map(|_| drawn(FULL)).collect();
        let names: std::collections::BTreeSet<_> = all.iter().map(|(_, name)| name).collect();
        assert!(all.len() > 15 && names.len() > 10, "{all:?}");
        for (_, name) in &all {
            assert_eq!(name.to_lowercase(), "www.example.org.");
        }
        let written = Form {
            mixed: false,
            ..FULL
        };
        assert_eq!(drawn(written).1, "www.example.org.");
    }

    #[test]
    fn the_flags_of_the_client_are_sent() {
        for flag in [false, true] {
            let asked = Question {
                dnssec_ok: flag,
                checking_disabled: flag,
                authentic: flag,
                ..question()
            };
            let request = request(&asked, FULL);
            let edns = request.edns.as_ref().expect("this form has EDNS");
            assert_eq!(edns.flags().dnssec_ok, flag);
            assert_eq!(edns.max_payload(), MAX_UDP);
            assert_eq!(request.metadata.checking_disabled, flag);
            assert_eq!(request.metadata.authentic_data, flag);
            assert!(request.metadata.recursion_desired);
        }
        assert!(request(&question(), SIMPLEST).edns.is_none());
    }

    #[test]
    fn only_the_response_to_the_question_counts() {
        assert!(matches!(received(|_| ()), Received::Answer(f) if f.answers.len() == 1));
        let other = || Name::from_ascii("www.example.net.").expect("a literal");
        assert!(matches!(
            received(|m| m.queries = vec![Query::query(other(), RecordType::A)]),
            Received::Stray
        ));
        assert!(matches!(
            received(|m| m.queries = vec![Query::query(question().name, RecordType::AAAA)]),
            Received::Stray
        ));
        assert!(matches!(received(|m| m.queries.clear()), Received::Stray));
        assert!(matches!(
            received(|m| m.metadata.truncation = true),
            Received::Cut
        ));
        assert!(matches!(
            received(|m| m.metadata.response_code = ResponseCode::Refused),
            Received::Failed
        ));
        assert!(matches!(
            received(|m| m.metadata.response_code = ResponseCode::FormErr),
            Received::NoEdns
        ));
    }

    #[test]
    fn an_answer_is_taken_in_with_its_aliases_first_and_its_ttls_bounded() {
        let name = |text: &str| Name::from_ascii(text).expect("a literal");
        let received = received(|m| {
            let alias = RData::CNAME(CNAME(name("cdn.example.net.")));
            m.answers[0].name = name("cdn.example.net.");
            m.answers[0].ttl = u32::MAX;
            m.add_answer(Record::from_rdata(question().name, 60, alias));
        });
        let Received::Answer(answer) = received else {
            panic!("{received:?}");
        };
        let shown = answer.answers.iter().map(|r| (r.record_type(), r.ttl));
        let shown: Vec<_> = shown.collect();
        assert_eq!(shown, [(RecordType::CNAME, 60), (RecordType::A, 0)]);
    }

    #[test]
    fn the_soa_of_an_alias_to_a_name_without_such_records_is_kept() {
        let name = |text: &str| Name::from_ascii(text).expect("a literal");
        let soas = |record_type| {
            let asked = Question::new(question().name, record_type);
            let response = response(|m| {
                let alias = RData::CNAME(CNAME(name("cdn.example.net.")));
                let zone = || name("example.net.");
                let soa = RData::SOA(SOA::new(zone(), zone(), 1, 1, 1, 1, 1));
                m.queries = vec![Query::query(question().name, record_type)];
                m.answers = vec![Record::from_rdata(question().name, 60, alias)];
                m.authorities = vec![Record::from_rdata(zone(), 60, soa)];
            });
            match read(&asked, FULL, response, false) {
                Received::Answer(answer) => answer.authority.len(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(soas(RecordType::AAAA), 1);
        assert_eq!(soas(RecordType::CNAME), 0);
        assert_eq!(soas(RecordType::ANY), 0);
    }

    #[test]
    fn each_way_to_refuse_edns_is_recognised_and_only_for_a_question_with_edns() {
        for code in [
            ResponseCode::FormErr,
            ResponseCode::NotImp,
            ResponseCode::BADVERS,
        ] {
            let refusal = |with_question: bool| {
                response(|m| {
                    m.set_edns(Edns::new());
                    m.metadata.response_code = code;
                    if !with_question {
                        m.queries.clear();
                    }
                })
            };
            for with_question in [true, false] {
                let received = read(&question(), FULL, refusal(with_question), false);
                assert!(matches!(received, Received::NoEdns), "{code}");
            }
            let received = read(&question(), SIMPLEST, refusal(true), false);
            assert!(matches!(received, Received::Failed), "{code}");
        }
    }

    #[test]
    fn a_query_as_the_client_wrote_it_keeps_its_case_and_accepts_a_response_in_any() {
        let name = Name::from_ascii("Www.example.ORG.").expect("a literal");
        let written = Question::new(name, RecordType::A);
        let form = Form {
            mixed: false,
            edns: true,
        };
        let request = request(&written, form);
        assert_eq!(request.queries[0].name().to_string(), "Www.example.ORG.");
        let received = read(&written, form, response(|_| ()), false);
        assert!(matches!(received, Received::Answer(_)));
    }
}
