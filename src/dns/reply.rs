//! Encodes a response to a request. Pure.
//!
//! A reply in a datagram has at most as many bytes as the client accepts. If the response is longer, the additional section is
//! left out. If it is still too long, it is truncated and has the TC flag, so that the client repeats the query over TCP.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder};
use hickory_resolver::net::NetError;
use hickory_resolver::net::xfer::Protocol;
use hickory_server::server::{Request, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::{MessageResponse, MessageResponseBuilder};

use super::transport::{EXTENDED_ERROR, MAX_UDP, PLAIN_UDP, PROHIBITED, PROHIBITED_TEXT};

/// The content of a reply. All the rest follows from the request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Response {
    pub(super) code: ResponseCode,
    /// The AA flag.
    pub(super) authoritative: bool,
    /// The AD flag.
    pub(super) authentic: bool,
    /// The client gets no recursion, and the reply says why (RFC 8914).
    pub(super) prohibited: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authority: Vec<Record>,
    pub(super) additional: Vec<Record>,
}

impl Response {
    /// Returns a response without records.
    pub(super) fn of(code: ResponseCode) -> Self {
        Self {
            code,
            ..Self::default()
        }
    }

    fn metadata(&self, request: &Request) -> Metadata {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = self.code;
        metadata.authoritative = self.authoritative;
        metadata.authentic_data = self.authentic;
        metadata.recursion_available = !self.prohibited;
        metadata
    }

    /// Returns the OPT record for a client that sent one (RFC 6891 section 6.1.1).
    fn edns(&self, request: &Request) -> Option<Edns> {
        let of_client = request.edns.as_ref()?;
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP)
            .set_version(0)
            // The client gets its DO flag back (RFC 3225 section 3).
            .set_dnssec_ok(of_client.flags().dnssec_ok);
        if self.prohibited {
            let mut error = PROHIBITED.to_be_bytes().to_vec();
            error.extend_from_slice(PROHIBITED_TEXT.as_bytes());
            let option = EdnsOption::Unknown(EXTENDED_ERROR, error);
            edns.options_mut().insert(option);
        }
        Some(edns)
    }
}

/// Sends `response` to `handler`. A reply over a stream must not be truncated, because the client would repeat its query over a
/// stream: it is sent without the additional section if it does not fit otherwise, and if it does not fit at all, the client
/// gets SERVFAIL.
pub(super) async fn respond<R: ResponseHandler>(
    request: &Request,
    mut response: Response,
    handler: &mut R,
) -> ResponseInfo {
    loop {
        let sent = send(request, &response, handler).await;
        let cut =
            matches!(&sent, Ok(info) if info.truncation) && request.protocol() != Protocol::Udp;
        match sent {
            Ok(info) if !cut => return info,
            _ if cut && !response.additional.is_empty() => response.additional.clear(),
            _ if response.code != ResponseCode::ServFail => {
                response = Response::of(ResponseCode::ServFail);
            }
            _ => return failed(request),
        }
    }
}

async fn send<R: ResponseHandler>(
    request: &Request,
    response: &Response,
    handler: &mut R,
) -> Result<ResponseInfo, NetError> {
    let edns = response.edns(request);
    let builder = MessageResponseBuilder::new(&request.queries, edns.as_ref());
    let message = builder.build(
        response.metadata(request),
        &response.answers,
        &response.authority,
        std::iter::empty(),
        &response.additional,
    );
    handler.send_response(message).await
}

fn failed(request: &Request) -> ResponseInfo {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = ResponseCode::ServFail;
    let counts = HeaderCounts::default();
    ResponseInfo::from(Header { metadata, counts })
}

/// Encodes the response to one request into a buffer.
#[derive(Debug, Clone)]
pub(super) struct Responder {
    /// The question as it stands in the request.
    question: Arc<[u8]>,
    /// The most bytes of the reply, if it is sent in a datagram.
    limit: Option<usize>,
    reply: Arc<Mutex<Vec<u8>>>,
}

impl Responder {
    pub(super) fn new(request: &Request) -> Self {
        let limit = (request.protocol() == Protocol::Udp).then(|| {
            let of_client = request.edns.as_ref().map(Edns::max_payload);
            usize::from(of_client.unwrap_or(PLAIN_UDP).clamp(PLAIN_UDP, MAX_UDP))
        });
        Self {
            question: request.queries.as_bytes().into(),
            limit,
            reply: Arc::default(),
        }
    }

    /// Takes the reply to `request`.
    pub(super) fn into_reply(self, request: &Request) -> Vec<u8> {
        let mut reply = self.reply.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = std::mem::take(&mut *reply);
        match request.as_slice().first_chunk() {
            Some(header) if reply.is_empty() => header_only(header, ResponseCode::ServFail),
            _ => reply,
        }
    }
}

#[async_trait]
impl ResponseHandler for Responder {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let opt = match response.edns() {
            Some(edns) => {
                let mut edns = edns.clone();
                edns.set_rcode_high(response.metadata().response_code.high());
                Record::from(&edns).to_bytes()?
            }
            None => Vec::new(),
        };
        let mut message = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut message);
        point_to_question(&mut encoder, &self.question)?;
        let info = response.destructive_emit(&mut encoder)?;
        // A record that did not fit is left in the buffer behind the end of the message.
        encoder.trim();
        if let Some(limit) = self.limit.filter(|limit| message.len() > *limit) {
            message = shorten(message, limit, &opt).unwrap_or_default();
        }
        *self.reply.lock().unwrap_or_else(PoisonError::into_inner) = message;
        Ok(info)
    }
}

/// Makes the names of the question known to the encoder, so that names of records become pointers to it. hickory-server copies
/// the question as bytes, and its encoder does not find a name in them.
fn point_to_question(encoder: &mut BinEncoder<'_>, question: &[u8]) -> Result<(), NetError> {
    encoder.emit_vec(&[0; HEADER])?;
    encoder.emit_vec(question)?;
    let mut labels = Vec::with_capacity(8);
    let mut at = 0;
    while let Some(length @ 1..=63) = question.get(at) {
        labels.push(HEADER + at);
        at += 1 + usize::from(*length);
    }
    if at < question.len() {
        for label in labels {
            encoder.store_label_pointer(label, HEADER + at);
        }
    }
    encoder.set_offset(0);
    Ok(())
}

const HEADER: usize = 12;
/// The positions of the counts of records in a header.
const ANSWERS: usize = 6;
const AUTHORITY: usize = 8;
const ADDITIONAL: usize = 10;

/// Shortens a message to `limit` bytes: without the additional section if that is enough (RFC 2181 section 9), and otherwise with
/// as many answers as fit, without the authority section and with the TC flag. `opt` is its OPT record, which stays.
///
/// Records are cut off at the end only, and a pointer leads to an earlier name (RFC 1035 section 4.1.4), so all names stay whole.
pub(super) fn shorten(mut message: Vec<u8>, limit: usize, opt: &[u8]) -> Option<Vec<u8>> {
    let count = |at| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let (answers, authority) = (count(ANSWERS)?, count(AUTHORITY)?);
    let truncated = message.get(2)? & TC != 0;
    let mut end = skip_name(&message, HEADER)? + 4;
    // The ends of the question and of each answer.
    let mut ends = vec![end];
    for number in 0..answers + authority {
        end = skip_record(&message, end)?;
        if number < answers {
            ends.push(end);
        }
    }
    let fits = |end: usize| end + opt.len() <= limit;
    let (end, answers, authority, flag) = match fits(end) && !truncated {
        true => (end, answers, authority, 0),
        false => {
            let fitting = ends.iter().rposition(|end| fits(*end))?;
            (*ends.get(fitting)?, fitting as u16, 0, TC)
        }
    };
    message.truncate(end);
    message.extend_from_slice(opt);
    *message.get_mut(2)? |= flag;
    let additional = u16::from(!opt.is_empty());
    for (at, count) in [
        (ANSWERS, answers),
        (AUTHORITY, authority),
        (ADDITIONAL, additional),
    ] {
        message
            .get_mut(at..at + 2)?
            .copy_from_slice(&count.to_be_bytes());
    }
    Some(message)
}

/// The TC flag in the third byte of a header.
const TC: u8 = 2;

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + length,
            _ => return Some(at + 2),
        }
    }
}

fn skip_record(message: &[u8], at: usize) -> Option<usize> {
    let data_length = skip_name(message, at)? + 8;
    let [high, low] = *message.get(data_length..)?.first_chunk()?;
    Some(data_length + 2 + usize::from(u16::from_be_bytes([high, low])))
}

/// Encodes the reply to `request` without waiting.
pub(super) fn encode(request: &Request, response: Response) -> Vec<u8> {
    let mut responder = Responder::new(request);
    respond(request, response, &mut responder)
        .now_or_never()
        .expect("a responder never waits");
    responder.into_reply(request)
}

/// Returns a reply that consists of a header, for a query that cannot be repeated in the reply.
pub(super) fn header_only(query: &[u8; 12], code: ResponseCode) -> Vec<u8> {
    let id = u16::from_be_bytes([query[0], query[1]]);
    let op_code = OpCode::from_u8((query[2] >> 3) & 0xf);
    let mut metadata = Metadata::new(id, MessageType::Response, op_code);
    metadata.recursion_desired = query[2] & 1 != 0;
    metadata.recursion_available = true;
    metadata.response_code = code;
    let counts = HeaderCounts::default();
    Header { metadata, counts }
        .to_bytes()
        .expect("twelve bytes fit into a message")
}
