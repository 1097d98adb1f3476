//! What one client may have of the resolver: a rate of queries, a rate of those that are forwarded, and a share of those
//! under way. Pure: the caller brings the time.
//!
//! The clients are cells of a table of fixed size, found by a keyed hash of the address. Two that meet in a cell share
//! what one may have; nobody can choose with whom, and nobody can make the table grow.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Cells of the table: some hundred containers hardly ever meet.
const CELLS: usize = 4096;
/// Queries forwarded and not answered yet at most, of all clients and of one.
pub(super) const UNDER_WAY: u32 = 1024;
pub(super) const UNDER_WAY_OF_ONE: u32 = 256;
/// Queries of one client a second at most, whatever the answer: far above what any software asks for in earnest,
/// far below what a core can answer to others besides.
const QUERIES: Rate = Rate::new(250_000, 100_000);
/// Of one client, queries forwarded.
const FORWARDS: Rate = Rate::new(1_000, 2_000);

/// A token bucket's size and speed, as the time a token takes and the time a full bucket is worth.
#[derive(Debug, Clone, Copy)]
struct Rate {
    token_ns: u64,
    full_ns: u64,
}

impl Rate {
    const fn new(a_second: u64, at_once: u64) -> Self {
        let token_ns = 1_000_000_000 / a_second;
        Self {
            token_ns,
            full_ns: token_ns * at_once,
        }
    }

    /// Takes a token if there is one. `bucket` is the time at which it is full again: the generic cell rate algorithm
    /// (ITU-T I.371), which needs one number a bucket and no refilling.
    fn take(self, bucket: &AtomicU64, now_ns: u64) -> bool {
        let taken = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let full_at = full_at.max(now_ns) + self.token_ns;
            (full_at - now_ns <= self.full_ns).then_some(full_at)
        });
        taken.is_ok()
    }
}

#[derive(Debug, Default)]
struct Cell {
    queries: AtomicU64,
    forwards: AtomicU64,
    under_way: AtomicU32,
}

/// Why a query is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The client asks too fast.
    Rate,
    /// Too many are under way, of the client's or altogether.
    Share,
}

/// The table.
#[derive(Debug)]
pub(super) struct Limits {
    key: u64,
    cells: Box<[Cell]>,
    under_way: AtomicU32,
}

impl Limits {
    /// `key` should be random.
    pub(super) fn new(key: u64) -> Self {
        Self {
            key,
            cells: (0..CELLS).map(|_| Cell::default()).collect(),
            under_way: AtomicU32::new(0),
        }
    }

    /// Whether `client` may ask at all.
    pub(super) fn admits(&self, client: IpAddr, now_ns: u64) -> bool {
        self.cell(client)
            .is_none_or(|cell| QUERIES.take(&cell.queries, now_ns))
    }

    /// A place among those under way for a query of `client`.
    pub(super) fn admit_forward(
        self: &Arc<Self>,
        client: IpAddr,
        now_ns: u64,
    ) -> Result<Share, Refusal> {
        let index = self.index(client);
        let cell = self.cells.get(index).ok_or(Refusal::Share)?;
        if !FORWARDS.take(&cell.forwards, now_ns) {
            return Err(Refusal::Rate);
        }
        if !take_one(&cell.under_way, UNDER_WAY_OF_ONE) {
            return Err(Refusal::Share);
        }
        if !take_one(&self.under_way, UNDER_WAY) {
            cell.under_way.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::Share);
        }
        Ok(Share {
            limits: Arc::clone(self),
            index,
        })
    }

    fn cell(&self, client: IpAddr) -> Option<&Cell> {
        self.cells.get(self.index(client))
    }

    /// Of IPv6 the /64 counts: a container may take any address in it.
    fn index(&self, client: IpAddr) -> usize {
        let number = match client.to_canonical() {
            IpAddr::V4(v4) => u64::from(u32::from(v4)),
            IpAddr::V6(v6) => (u128::from(v6) >> 64) as u64,
        };
        // The mixing step of SplitMix64 (Steele, Lea and Flood, 2014), keyed before and after.
        let mut mixed = number ^ self.key;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed = (mixed ^ (mixed >> 31)).wrapping_mul(self.key | 1);
        (mixed >> 40) as usize % CELLS
    }
}

fn take_one(count: &AtomicU32, most: u32) -> bool {
    let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
        (n < most).then_some(n + 1)
    });
    taken.is_ok()
}

/// A place among those under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    limits: Arc<Limits>,
    index: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.limits.under_way.fetch_sub(1, Ordering::Relaxed);
        if let Some(cell) = self.limits.cells.get(self.index) {
            cell.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn client(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 210, 1, n).into()
    }

    #[test]
    fn a_client_has_a_burst_and_then_its_rate_and_takes_nothing_of_anothers() {
        let limits = Arc::new(Limits::new(7));
        let forwarded = |who: u8, now_ns| limits.admit_forward(client(who), now_ns).is_ok();
        let at_once = (0..3_000).filter(|_| forwarded(1, 0)).count();
        assert_eq!(at_once, 2_000);
        assert_eq!(
            limits.admit_forward(client(1), 0).err(),
            Some(Refusal::Rate)
        );
        assert!(forwarded(2, 0));
        let a_second_later = (0..3_000).filter(|_| forwarded(1, 1_000_000_000)).count();
        assert_eq!(a_second_later, 1_000);
    }

    #[test]
    fn a_client_has_a_share_of_those_under_way_and_gives_it_back() {
        let limits = Arc::new(Limits::new(7));
        let forward = |who: u8| limits.admit_forward(client(who), 0);
        let mut shares: Vec<Share> = (0..300).filter_map(|_| forward(1).ok()).collect();
        assert_eq!(shares.len(), UNDER_WAY_OF_ONE as usize);
        assert_eq!(forward(1).err(), Some(Refusal::Share));
        for who in 2..=9 {
            shares.extend((0..300).filter_map(|_| forward(who).ok()));
        }
        assert_eq!(shares.len(), UNDER_WAY as usize);
        shares.clear();
        assert!(forward(1).is_ok());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let limits = Limits::new(7);
        let index = |text: &str| limits.index(text.parse().expect("a literal"));
        assert_eq!(index("fd00::1"), index("fd00::2"));
        assert_ne!(index("fd00::1"), index("fd00:0:0:1::1"));
        assert_eq!(index("10.0.0.1"), index("::ffff:10.0.0.1"));
    }
}
