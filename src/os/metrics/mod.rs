//! Metrics in the text format of Prometheus, for both programs: the one writer of the pages, and the one server.
//!
//! Decision: the crate prometheus-client is not used. It writes only OpenMetrics, whose `# TYPE` lines name counters without `_total`,
//! whose help texts and last line differ, and whose content type is another one. Scrapers and rules that know the present text, format
//! 0.0.4, would have to change. Our counters are atomics in the parts that count, so a registry would only copy them.

mod durations;
mod page;
mod process;
mod server;

use std::net::SocketAddr;

use serde::Deserialize;

pub use self::durations::Durations;
pub use self::page::{Family, Kind, MetricsPage, Value};
pub use self::process::text as process_text;
pub use self::server::{answer, serve};

/// The key `listen` of the table `[metrics]`: an address and a port, or an empty text, which switches the metrics off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct MetricsListen(Option<SocketAddr>);

impl MetricsListen {
    /// The address; absent if metrics are switched off.
    #[must_use]
    pub fn address(self) -> Option<SocketAddr> {
        self.0
    }
}

/// The text is no address with a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an address with a port, such as 127.0.0.1:9560 or [::1]:9560; \"\" switches the metrics off"
)]
pub struct NotAnAddress(String);

impl TryFrom<String> for MetricsListen {
    type Error = NotAnAddress;

    fn try_from(text: String) -> Result<Self, NotAnAddress> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(address) => Ok(Self(Some(address))),
            Err(_) => Err(NotAnAddress(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_address_switches_the_metrics_off_and_a_wrong_one_is_named() {
        let parse = |text: &str| MetricsListen::try_from(text.to_owned());
        assert_eq!(parse("").map(MetricsListen::address), Ok(None));
        let address = SocketAddr::from(([127, 0, 0, 1], 9560));
        assert_eq!(
            parse("127.0.0.1:9560").map(MetricsListen::address),
            Ok(Some(address))
        );
        assert_eq!(parse("9560"), Err(NotAnAddress("9560".to_owned())));
    }
}
