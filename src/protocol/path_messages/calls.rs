//! A call by way of a common peer, as a message between that peer and one of the two ends.

use super::bytes::{Reader, Writer};
use super::error::PathMessageError;
use super::{ADDRESS, MAX_CANDIDATES, count};
use crate::model::PublicKey;
use crate::protocol::call::Call;
use crate::records::envelope::Signature;

/// The size in bytes of a key.
const KEY: usize = 32;
/// The size in bytes of a signature.
const SIGNATURE: usize = 64;
/// The maximum size in bytes of the body.
pub(super) const MAX_BODY: usize = KEY + 1 + 8 + 1 + MAX_CANDIDATES * ADDRESS + SIGNATURE;

/// A call by way of a common peer. The identity key of the caller signs it, so the common peer can neither make one nor change one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCall {
    /// The other end of the call, as seen by the node that is not the common peer.
    pub end: CallEnd,
    /// The call.
    pub call: Call,
}

/// The other end of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallEnd {
    /// The receiver of this message is the common peer, and is asked to pass the call on to this node.
    To(PublicKey),
    /// The sender of this message is the common peer, and passes on the call of this node.
    From(PublicKey),
}

impl PeerCall {
    pub(super) fn read(
        body: &mut Reader<'_>,
        end: fn(PublicKey) -> CallEnd,
    ) -> Result<Self, PathMessageError> {
        let member = PublicKey(body.array::<KEY>()?);
        let (asks, at) = (body.u8()? == ASKS, body.u64()?);
        let mut candidates = Vec::new();
        for _ in 0..count(body, MAX_CANDIDATES)? {
            // The signature is over all of them, so none is left out.
            let address = body.address()?;
            candidates.push(address.ok_or(PathMessageError::Family(0))?);
        }
        let signature = Signature(body.array::<SIGNATURE>()?);
        Ok(Self {
            end: end(member),
            call: Call {
                asks,
                candidates,
                at,
                signature,
            },
        })
    }

    pub(super) fn write(&self, body: &mut Writer<'_>) -> Option<()> {
        let (CallEnd::To(member) | CallEnd::From(member)) = &self.end;
        let call = &self.call;
        if call.candidates.len() > MAX_CANDIDATES {
            return None;
        }
        body.bytes(&member.0)?;
        body.u8(if call.asks { ASKS } else { 0 })?;
        body.u64(call.at)?;
        body.u8(u8::try_from(call.candidates.len()).ok()?)?;
        for candidate in &call.candidates {
            body.address(Some(*candidate))?;
        }
        body.bytes(&call.signature.0)
    }
}

/// The value of `asks` in a call that asks for an answer.
const ASKS: u8 = 1;
