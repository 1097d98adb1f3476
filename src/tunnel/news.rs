//! The members of whose paths there is news, for the part of the program that chooses paths.
//!
//! A member is on the list at most once until the list is taken, so its length is bounded by the number of members. What the
//! news is follows from the state of the member's paths ([`super::steering`]).

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::eventfd::EventFd;

/// The list, and the event that tells that it is not empty.
pub(super) struct News {
    event: EventFd,
    members: Mutex<Vec<u64>>,
}

impl News {
    pub(super) fn new(event: EventFd) -> Self {
        Self {
            event,
            members: Mutex::default(),
        }
    }

    /// Adds a member.
    #[cold]
    pub(super) fn add(&self, member: u64) {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if !members.contains(&member) {
            members.push(member);
            if members.len() == 1 {
                let _ = self.event.write(1);
            }
        }
    }

    /// Raises the event for news that is of no member.
    #[cold]
    pub(super) fn raise(&self) {
        let _ = self.event.write(1);
    }

    /// Readable when the list is not empty. Whoever reads it takes the list afterwards.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Takes the list.
    pub(super) fn take(&self) -> Vec<u64> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::EfdFlags;

    #[test]
    fn a_member_is_on_the_list_once_and_the_event_is_raised_for_the_first() {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an event");
        let news = News::new(event);
        assert!(news.event.read().is_err());
        for member in [7, 8, 7, 7] {
            news.add(member);
        }
        assert_eq!(news.event.read().ok(), Some(1));
        assert_eq!(news.take(), [7, 8]);
        assert_eq!(news.take(), [0; 0]);
        news.add(7);
        assert_eq!(news.event.read().ok(), Some(1));
    }
}
