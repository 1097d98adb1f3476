//! A call that was refused for its token. Anybody can cause that, so the lines of the log and the events are bounded.

use crate::model::PublicKey;
use crate::os::audit::{Event, Outcome, Text, Transition, What, Who};
use crate::protocol::api::ApiError;

pub(super) struct CallRefused<'a> {
    /// The method and the path.
    pub(super) call: &'a str,
    /// The caller, with the token that it showed if this is one of the mesh.
    pub(super) by: &'a Who,
    pub(super) error: &'a ApiError,
}

impl Transition for CallRefused<'_> {
    fn log(&self) {
        let (source, token) = match self.by {
            Who::ApiCaller { address, token, .. } => (
                Some(tracing::field::display(address)),
                token.as_ref().map(PublicKey::short),
            ),
            _ => (None, None),
        };
        let (call, reason) = (self.call, &self.error.message);
        tracing::warn!(call, source, token, reason, "API call refused");
    }

    fn event(&self) -> Option<Event> {
        let what = What::ApiRefused {
            call: Text::from(self.call),
        };
        let result = Outcome::Refused(Text::from(self.error.message.as_str()));
        Some(Event {
            result,
            ..Event::done(self.by.clone(), what)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::log::captured;
    use crate::os::repeats::BURST;
    use crate::protocol::api::ErrorCode;

    #[test]
    fn a_refused_call_is_one_line_with_its_source_and_a_flood_of_them_is_bounded() {
        let by = Who::ApiCaller {
            address: "10.210.1.9".parse().expect("a literal"),
            token: Some(PublicKey([7; 32])),
            name: None,
        };
        let error = ApiError::new(ErrorCode::Forbidden, "it is\nfor others");
        let refused = CallRefused {
            call: "GET /v1/status",
            by: &by,
            error: &error,
        };
        let lines = captured::lines(|| refused.log());
        assert_eq!(
            lines,
            [
                r#"WARN API call refused call="GET /v1/status" source=10.210.1.9 token=070707070707 reason="it is\nfor others""#
            ]
        );
        captured::assert_documented(&lines[0], include_str!("../../../docs/logs.md"));
        let many = captured::lines(|| (0..1000).for_each(|_| refused.log()));
        assert_eq!(many.len(), BURST as usize);
    }
}
