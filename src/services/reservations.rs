//! Which rollout may change a service on this node: a second one is refused until the first one has ended. Pure.
//!
//! A reservation has a time limit, so that it ends soon after its holder has died. It is lost when meshd restarts, and its holder makes it
//! again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::model::ServiceName;

/// The maximum number of reservations, of all callers together.
const MAX_RESERVATIONS: usize = 256;
/// The longest time for which a service is reserved.
const MAX_TIME: Duration = Duration::from_secs(600);
/// The maximum length of the name of a holder, in bytes.
const MAX_HOLDER: usize = 64;

/// Why a service is not reserved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReservationError {
    /// The service, and the seconds until its reservation ends unless its holder renews it.
    #[error(
        "another rollout has reserved {0} for {1} s more; wait until it has ended, or interrupt it"
    )]
    Taken(ServiceName, u64),
    /// The name of the holder is empty or too long.
    #[error("the holder of a reservation is a text of 1 to 64 bytes")]
    Holder,
    /// The node has as many reservations as it can have.
    #[error("too many services are reserved on this node; try again later")]
    Full,
}

#[derive(Debug)]
struct Reservation {
    holder: String,
    until: Instant,
}

/// The reservations of a node.
#[derive(Debug, Default)]
pub struct Reservations(BTreeMap<ServiceName, Reservation>);

impl Reservations {
    /// Reserves `service` for `holder`, or renews its reservation. It ends after `time`, and at once if that is zero.
    ///
    /// # Errors
    /// Another holder has reserved the service, the name of the holder is not valid, or there are too many reservations.
    pub fn reserve(
        &mut self,
        service: &ServiceName,
        holder: &str,
        time: Duration,
        now: Instant,
    ) -> Result<(), ReservationError> {
        if holder.is_empty() || holder.len() > MAX_HOLDER {
            return Err(ReservationError::Holder);
        }
        self.0.retain(|_, reservation| reservation.until > now);
        match self.0.get(service) {
            Some(other) if other.holder != holder => {
                let left = other.until.saturating_duration_since(now).as_secs();
                return Err(ReservationError::Taken(service.clone(), left.max(1)));
            }
            None if self.0.len() >= MAX_RESERVATIONS => return Err(ReservationError::Full),
            _ => {}
        }
        let reservation = Reservation {
            holder: holder.to_owned(),
            until: now + time.min(MAX_TIME),
        };
        if time.is_zero() {
            self.0.remove(service);
        } else {
            self.0.insert(service.clone(), reservation);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn web() -> ServiceName {
        ServiceName::parse("web").expect("a literal")
    }

    #[test]
    fn a_second_holder_is_refused_until_the_first_one_ends_or_falls_silent() {
        let mut reservations = Reservations::default();
        let now = Instant::now();
        let mut reserve = |holder: &str, time, at| reservations.reserve(&web(), holder, time, at);
        assert_eq!(reserve("one", MINUTE, now), Ok(()));
        let taken = |seconds| Err(ReservationError::Taken(web(), seconds));
        assert_eq!(reserve("two", MINUTE, now), taken(60));
        assert_eq!(reserve("two", Duration::ZERO, now), taken(60));
        let later = now + MINUTE / 2;
        assert_eq!(reserve("one", MINUTE, later), Ok(()), "it is renewed");
        assert_eq!(reserve("two", MINUTE, now + MINUTE), taken(30));
        assert_eq!(reserve("two", MINUTE, later + MINUTE), Ok(()));
        assert_eq!(reserve("two", Duration::ZERO, later + MINUTE), Ok(()));
        assert_eq!(reserve("one", MINUTE, later + MINUTE), Ok(()));
    }

    #[test]
    fn what_a_caller_can_reserve_is_bounded() {
        let mut reservations = Reservations::default();
        let now = Instant::now();
        for n in 0..MAX_RESERVATIONS {
            let name = ServiceName::parse(&format!("s{n}")).expect("a name");
            let reserved = reservations.reserve(&name, "one", Duration::MAX, now);
            assert_eq!(reserved, Ok(()), "{n}");
        }
        let mut reserve = |holder: &str, at| reservations.reserve(&web(), holder, MINUTE, at);
        assert_eq!(reserve("one", now), Err(ReservationError::Full));
        assert_eq!(reserve("", now), Err(ReservationError::Holder));
        let long = "x".repeat(MAX_HOLDER + 1);
        assert_eq!(reserve(&long, now), Err(ReservationError::Holder));
        assert_eq!(reserve("one", now + MAX_TIME), Ok(()), "the others ended");
    }
}
