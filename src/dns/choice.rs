//! Which instances of a name are answered, and in which order. Pure: the caller brings the randomness.

use std::sync::Arc;

use super::zone::{Entry, NEAREST, Zone, ZoneInstance};

/// Instances of a name whose order is worked out without memory of its own.
const FEW: usize = 64;

/// What a name, relative to the domain, means.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) entry: &'a Entry,
    /// Only the nearest of its instances are meant.
    pub(super) nearest: bool,
}

/// Finds a name. One that begins with `nearest` belongs to the service below it; without such a service it means itself.
pub(super) fn find<'a>(zone: &'a Zone, relative: &str) -> Option<Found<'a>> {
    let below = relative
        .strip_prefix(NEAREST)
        .and_then(|rest| zone.find(rest.strip_prefix('.')?));
    if let Some(entry) = below.filter(|entry| entry.is_service) {
        let nearest = true;
        return Some(Found { entry, nearest });
    }
    let entry = zone.find(relative)?;
    let nearest = false;
    Some(Found { entry, nearest })
}

/// The instances answered: nearest first, in random order among equals, worked out one at a time.
pub(super) struct Order<'a> {
    answered: &'a [Arc<ZoneInstance>],
    few: [u32; FEW],
    many: Vec<u32>,
    next: usize,
    /// Where those as near as the next one end.
    group_end: usize,
    nearest: bool,
    random: u64,
}

impl<'a> Order<'a> {
    pub(super) fn new(found: Found<'a>, entropy: u64) -> Self {
        let answered = &*found.entry.answered;
        let mut few = [0; FEW];
        let many = match few.get_mut(..answered.len()) {
            Some(room) => {
                room.iter_mut().zip(0..).for_each(|(place, n)| *place = n);
                Vec::new()
            }
            None => (0..).take(answered.len()).collect(),
        };
        Self {
            answered,
            few,
            many,
            next: 0,
            group_end: 0,
            nearest: found.nearest,
            // Of nothing but zeros nothing else would come.
            random: entropy | 1,
        }
    }

    fn places(&mut self) -> &mut [u32] {
        if self.many.is_empty() {
            self.few.get_mut(..self.answered.len()).unwrap_or_default()
        } else {
            &mut self.many
        }
    }

    fn at(&mut self, place: usize) -> Option<&'a ZoneInstance> {
        let index = *self.places().get(place)?;
        self.answered.get(index as usize).map(AsRef::as_ref)
    }

    /// xorshift64 (Marsaglia, 2003): the order need not be unpredictable, only even.
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % bound.max(1) as u64) as usize
    }
}

impl<'a> Iterator for Order<'a> {
    type Item = &'a ZoneInstance;

    fn next(&mut self) -> Option<&'a ZoneInstance> {
        let here = self.next;
        if here == self.group_end {
            if self.nearest && here > 0 {
                return None;
            }
            let group = self.at(here)?.group;
            self.group_end += 1;
            while self.at(self.group_end).is_some_and(|i| i.group == group) {
                self.group_end += 1;
            }
        }
        let other = here + self.below(self.group_end - here);
        self.places().swap(here, other);
        self.next += 1;
        self.at(here)
    }
}
