//! How much of the resolver one client may use: rates of queries, a share of a core for queries that the fast path does not
//! answer, and places in pools of bounded size. Pure: the clock is an argument.
//!
//! - Work is charged by cost, not by the number of queries: by [`Work`], the records that were walked and the bytes that
//!   were written. A client that has spent its share is not served until its token bucket has filled up again.
//! - A pool never gives a client, or a network of clients, more places than are left for all others. So a client that takes
//!   as many places as it can takes at most half of the free ones, and there is always a place for another client.
//! - Another node is one client with small bounds, and all other nodes together are one network.
//!
//! Local clients have cells in a table of fixed size, which a keyed hash of the address selects. Two clients with the same cell
//! share the limits of one. Since the key is secret, no client can choose the cell of another one, and the table does not
//! grow. Networks and other nodes have cells of their own, by the position of the network in the list and the number of the
//! node's block.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::access::Client;
use super::choice::mixed;

/// Cells of local clients: of some hundred containers, hardly any two have the same cell.
const LOCAL_CELLS: usize = 4096;
/// Cells of other nodes: blocks are numbered from 1 in the order of joins, so in most meshes no two nodes have the same cell.
const PEER_CELLS: usize = 1024;
/// Networks of local clients that have cells of their own: a container engine makes some dozens.
const NETWORKS: usize = 256;

/// The maximum rate of queries of one local client, whatever the answer is: far more than programs send in normal use, and few
/// enough that a core can answer other clients as well.
const QUERIES: Rate = Rate::new(250_000, 100_000);
/// The maximum rate of queries of another node: about a twentieth of a core.
const PEER_QUERIES: Rate = Rate::new(5_000, 5_000);
/// The maximum rate of queries that are forwarded for one local client.
const FORWARDS: Rate = Rate::new(1_000, 2_000);
/// The part of a core that a local client may use, as one in so many, and the milliseconds that it may use at once.
const WORK: Rate = Rate::part_of_a_core(10, 100);
/// The part of a core that all clients of a network may use together.
const NETWORK_WORK: Rate = Rate::part_of_a_core(2, 500);
/// The part of a core that another node may use.
const PEER_WORK: Rate = Rate::part_of_a_core(50, 20);
/// The part of a core that all other nodes may use together.
const PEERS_WORK: Rate = Rate::part_of_a_core(20, 50);

/// Resources of which there is a bounded number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pool {
    /// Queries that wait for the full path, or whose reply is made and not sent yet.
    FullPath,
    /// Queries forwarded and not answered yet.
    Forwards,
    /// Connections.
    Connections,
    /// TCP segments that wait for the stack inside the tunnel device.
    Segments,
    /// KiB of large answers of upstreams that are under way.
    Memory,
}

/// The maximum number of places in a pool.
struct Bounds {
    /// For all clients together.
    all: u32,
    /// For one local client.
    local: u32,
    /// For another node.
    peer: u32,
    /// For all other nodes together.
    peers: u32,
}

impl Pool {
    const COUNT: usize = Self::Memory as usize + 1;

    /// The number of places for all clients together.
    pub(super) const fn size(self) -> usize {
        self.bounds().all as usize
    }

    const fn bounds(self) -> Bounds {
        match self {
            Self::FullPath => Bounds::new(1024, 64, 8, 64),
            // Other nodes get no recursion, and their packets do not come from the tunnel device.
            Self::Forwards => Bounds::new(1024, 256, 0, 0),
            Self::Connections => Bounds::new(512, 32, 8, 64),
            Self::Segments => Bounds::new(1024, 128, 0, 0),
            Self::Memory => Bounds::new(8 * 1024, 2 * 1024, 0, 0),
        }
    }
}

impl Bounds {
    const fn new(all: u32, local: u32, peer: u32, peers: u32) -> Self {
        Self {
            all,
            local,
            peer,
            peers,
        }
    }
}

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

    /// A rate whose tokens are nanoseconds of work.
    const fn part_of_a_core(one_in: u64, at_once_ms: u64) -> Self {
        Self {
            token_ns: one_in,
            full_ns: one_in * at_once_ms * 1_000_000,
        }
    }

    /// Takes a token if there is one. `bucket` holds the time at which the bucket is full again: the generic cell rate algorithm
    /// (ITU-T I.371), which needs one number a bucket and no refilling.
    fn take(self, bucket: &AtomicU64, now_ns: u64) -> bool {
        let taken = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let full_at = full_at.max(now_ns) + self.token_ns;
            (full_at - now_ns <= self.full_ns).then_some(full_at)
        });
        taken.is_ok()
    }

    /// Whether there is a token.
    fn has(self, bucket: &AtomicU64, now_ns: u64) -> bool {
        bucket.load(Ordering::Relaxed).saturating_sub(now_ns) < self.full_ns
    }

    /// Takes `tokens` even if there are fewer. The bucket then has to fill up by the missing ones before it gives another.
    fn charge(self, bucket: &AtomicU64, tokens: u64, now_ns: u64) {
        let charged = |full_at: u64| {
            let more = tokens.saturating_mul(self.token_ns);
            Some(full_at.max(now_ns).saturating_add(more))
        };
        // It always succeeds, since the closure always gives a value.
        let _ = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, charged);
    }
}

/// The cost of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Instances and ports of the zone that were examined.
    pub(super) walked: usize,
    /// Bytes of the reply.
    pub(super) written: usize,
}

impl Work {
    /// The time on a core, about: to hand a query over and send a reply, for each instance or port, and for each byte, which is
    /// encoded from records, and for a datagram several times until the reply fits.
    pub(super) fn nanoseconds(self) -> u64 {
        const QUERY: u64 = 5_000;
        const WALKED: u64 = 100;
        const WRITTEN: u64 = 20;
        let [walked, written] = [self.walked, self.written].map(|n| n as u64);
        QUERY + walked.saturating_mul(WALKED) + written.saturating_mul(WRITTEN)
    }
}

/// The time that the stack takes for a TCP segment, about.
const SEGMENT_NS: u64 = 5_000;
/// The time that a query over a stream takes which the fast path answers, about: its task shares threads with all others.
const STREAMED_NS: u64 = 2_000;

#[derive(Debug, Default)]
struct Cell {
    queries: AtomicU64,
    forwards: AtomicU64,
    work: AtomicU64,
    held: [AtomicU32; Pool::COUNT],
}

#[derive(Debug, Default)]
struct Network {
    work: AtomicU64,
    held: [AtomicU32; Pool::COUNT],
}

/// Why a query is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The client exceeds its rate of forwarded queries.
    Rate,
    /// The client, or its network, has spent its share of a core.
    Work,
    /// There is no place in this pool, either for the client or for any client.
    Full(Pool),
}

/// The table.
#[derive(Debug)]
pub(super) struct Limits {
    key: u64,
    locals: Box<[Cell]>,
    peers: Box<[Cell]>,
    networks: Box<[Network]>,
    all_peers: Network,
    held: [AtomicU32; Pool::COUNT],
}

impl Limits {
    /// `key` should be random.
    pub(super) fn new(key: u64) -> Self {
        let cells = |count| (0..count).map(|_| Cell::default()).collect();
        Self {
            key,
            locals: cells(LOCAL_CELLS),
            peers: cells(PEER_CELLS),
            networks: (0..NETWORKS).map(|_| Network::default()).collect(),
            all_peers: Network::default(),
            held: Default::default(),
        }
    }

    /// Whether the rate of queries of `client` permits one more.
    pub(super) fn admits(&self, client: Client, now_ns: u64) -> bool {
        let rate = match client {
            Client::Local { .. } => QUERIES,
            Client::Peer { .. } => PEER_QUERIES,
        };
        self.cell(client)
            .is_none_or(|cell| rate.take(&cell.queries, now_ns))
    }

    /// A place in the queue of the full path, if `client` has not spent its share of a core.
    pub(super) fn admit_full_path(
        self: &Arc<Self>,
        client: Client,
        now_ns: u64,
    ) -> Result<Share, Refusal> {
        self.check_work(client, now_ns)?;
        self.place(Pool::FullPath, client)
    }

    /// A place among the forwarded queries, if `client` has not spent its share of a core and its rate permits one more.
    pub(super) fn admit_forward(
        self: &Arc<Self>,
        client: Client,
        now_ns: u64,
    ) -> Result<Share, Refusal> {
        self.check_work(client, now_ns)?;
        let forwards = self.cell(client).map(|cell| &cell.forwards);
        if !forwards.is_some_and(|bucket| FORWARDS.take(bucket, now_ns)) {
            return Err(Refusal::Rate);
        }
        self.place(Pool::Forwards, client)
    }

    /// A place among the segments that wait for the stack. A segment is paid for at once.
    pub(super) fn admit_segment(
        self: &Arc<Self>,
        client: Client,
        now_ns: u64,
    ) -> Result<Share, Refusal> {
        self.check_work(client, now_ns)?;
        let share = self.place(Pool::Segments, client)?;
        self.charge_ns(client, SEGMENT_NS, now_ns);
        Ok(share)
    }

    /// Whether `client` may have a query over a stream answered, which is paid for at once.
    pub(super) fn admit_streamed(&self, client: Client, now_ns: u64) -> bool {
        let admitted = self.may_work(client, now_ns);
        if admitted {
            self.charge_ns(client, STREAMED_NS, now_ns);
        }
        admitted
    }

    /// Charges `client` for work that was done.
    pub(super) fn charge(&self, client: Client, work: Work, now_ns: u64) {
        self.charge_ns(client, work.nanoseconds(), now_ns);
    }

    fn check_work(&self, client: Client, now_ns: u64) -> Result<(), Refusal> {
        self.may_work(client, now_ns)
            .then_some(())
            .ok_or(Refusal::Work)
    }

    fn place(self: &Arc<Self>, pool: Pool, client: Client) -> Result<Share, Refusal> {
        self.take(pool, client, 1).ok_or(Refusal::Full(pool))
    }

    /// Takes `amount` places for `client`, if there are so many.
    pub(super) fn take(self: &Arc<Self>, pool: Pool, client: Client, amount: u32) -> Option<Share> {
        let bounds = pool.bounds();
        let index = pool as usize;
        let all = self.held.get(index)?;
        let of_client = self.cell(client)?.held.get(index)?;
        let of_network = self.network(client)?.held.get(index)?;
        let (client_bound, network_bound) = match client {
            Client::Local { .. } => (bounds.local, bounds.all),
            Client::Peer { .. } => (bounds.peer, bounds.peers),
        };
        let left = bounds.all.saturating_sub(all.load(Ordering::Relaxed));
        let counts = [
            (of_client, client_bound.min(left)),
            (of_network, network_bound.min(left)),
            (all, bounds.all),
        ];
        for (taken, (count, bound)) in counts.iter().enumerate() {
            if !take_some(count, amount, *bound) {
                for (count, _) in counts.iter().take(taken) {
                    count.fetch_sub(amount, Ordering::Relaxed);
                }
                return None;
            }
        }
        Some(Share {
            limits: Arc::clone(self),
            pool,
            client,
            amount,
        })
    }

    fn may_work(&self, client: Client, now_ns: u64) -> bool {
        let (of_client, of_network) = work_rates(client);
        let has = |rate: Rate, bucket: Option<&AtomicU64>| {
            bucket.is_none_or(|bucket| rate.has(bucket, now_ns))
        };
        has(of_client, self.cell(client).map(|cell| &cell.work))
            && has(
                of_network,
                self.network(client).map(|network| &network.work),
            )
    }

    fn charge_ns(&self, client: Client, work_ns: u64, now_ns: u64) {
        let (of_client, of_network) = work_rates(client);
        if let Some(cell) = self.cell(client) {
            of_client.charge(&cell.work, work_ns, now_ns);
        }
        if let Some(network) = self.network(client) {
            of_network.charge(&network.work, work_ns, now_ns);
        }
    }

    fn cell(&self, client: Client) -> Option<&Cell> {
        match client {
            Client::Local { address, .. } => self.locals.get(self.hash(address) % LOCAL_CELLS),
            Client::Peer { block } => self.peers.get(block as usize % PEER_CELLS),
        }
    }

    fn network(&self, client: Client) -> Option<&Network> {
        match client {
            Client::Local { network, .. } => self.networks.get(network % NETWORKS),
            Client::Peer { .. } => Some(&self.all_peers),
        }
    }

    fn hash(&self, number: u64) -> usize {
        (mixed(number ^ self.key).wrapping_mul(self.key | 1) >> 40) as usize
    }
}

fn work_rates(client: Client) -> (Rate, Rate) {
    match client {
        Client::Local { .. } => (WORK, NETWORK_WORK),
        Client::Peer { .. } => (PEER_WORK, PEERS_WORK),
    }
}

fn take_some(count: &AtomicU32, amount: u32, most: u32) -> bool {
    let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
        held.checked_add(amount).filter(|held| *held <= most)
    });
    taken.is_ok()
}

/// Places in a pool, which are free again when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    limits: Arc<Limits>,
    pool: Pool,
    client: Client,
    amount: u32,
}

impl Share {
    /// The client that holds the places.
    pub(super) fn client(&self) -> Client {
        self.client
    }

    /// The pool that the places are in.
    pub(super) fn pool(&self) -> Pool {
        self.pool
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let index = self.pool as usize;
        let limits = &self.limits;
        let counts = [
            limits.cell(self.client).map(|cell| &cell.held),
            limits.network(self.client).map(|network| &network.held),
            Some(&limits.held),
        ];
        for count in counts
            .into_iter()
            .flatten()
            .filter_map(|held| held.get(index))
        {
            count.fetch_sub(self.amount, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container of the network `network`.
    fn container(network: usize, n: u64) -> Client {
        let address = (network as u64) << 16 | n;
        Client::Local { address, network }
    }

    fn peer(block: u32) -> Client {
        Client::Peer { block }
    }

    fn take_all(limits: &Arc<Limits>, pool: Pool, client: Client) -> Vec<Share> {
        std::iter::from_fn(|| limits.take(pool, client, 1))
            .take(10_000)
            .collect()
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_client_has_a_burst_and_then_its_rate_and_does_not_reduce_anothers() {
        let limits = Arc::new(Limits::new(7));
        let forwarded = |n, now_ns| limits.admit_forward(container(1, n), now_ns).is_ok();
        let at_once = (0..3_000).filter(|_| forwarded(1, 0)).count();
        assert_eq!(at_once, 2_000);
        assert_eq!(
            limits.admit_forward(container(1, 1), 0).err(),
            Some(Refusal::Rate)
        );
        assert!(forwarded(2, 0));
        let a_second_later = (0..3_000).filter(|_| forwarded(1, SECOND)).count();
        assert_eq!(a_second_later, 1_000);
    }

    /// How many replies of `work` a client gets made in a second from `now_ns` on, asking all the time.
    fn served(limits: &Arc<Limits>, client: Client, work: Work, from_ns: u64) -> u64 {
        let mut served = 0;
        for now_ns in (from_ns..from_ns + SECOND).step_by(20_000) {
            if limits.admit_full_path(client, now_ns).is_ok() {
                limits.charge(client, work, now_ns);
                served += 1;
            }
        }
        served
    }

    #[test]
    fn a_client_is_charged_by_the_size_of_its_answers_and_not_by_their_number() {
        let (small, large) = (
            Work {
                walked: 3,
                written: 200,
            },
            Work {
                walked: 105 * 17,
                written: 12_000,
            },
        );
        assert!(large.nanoseconds() > 10 * small.nanoseconds());
        for work in [small, large] {
            let limits = Arc::new(Limits::new(7));
            served(&limits, container(1, 1), work, 0);
            // The burst is spent: what is left is a tenth of a core.
            let a_second = served(&limits, container(1, 1), work, SECOND);
            let spent = a_second * work.nanoseconds();
            let tenth = SECOND / 10;
            assert!(
                (tenth * 9 / 10..=tenth * 11 / 10).contains(&spent),
                "{spent}"
            );
        }
    }

    #[test]
    fn a_client_without_a_share_left_does_not_reduce_anothers() {
        let limits = Arc::new(Limits::new(7));
        let large = Work {
            walked: 2_000,
            written: 12_000,
        };
        served(&limits, container(1, 1), large, 0);
        assert_eq!(
            limits.admit_full_path(container(1, 1), SECOND - 1).err(),
            Some(Refusal::Work)
        );
        assert!(limits.admit_full_path(container(1, 2), SECOND - 1).is_ok());
        assert!(limits.admit_forward(container(1, 2), SECOND - 1).is_ok());
    }

    #[test]
    fn many_addresses_of_one_network_take_no_more_than_the_network_may() {
        let limits = Arc::new(Limits::new(7));
        let large = Work {
            walked: 2_000,
            written: 12_000,
        };
        let mut spent = 0;
        for second in 0..10 {
            for n in 0..10_000 {
                let now_ns = second * SECOND + n * 100_000;
                if limits.admit_full_path(container(1, n), now_ns).is_ok() {
                    limits.charge(container(1, n), large, now_ns);
                    spent += large.nanoseconds();
                }
            }
        }
        let half = 10 * SECOND / 2;
        assert!(spent < half + half / 5, "{spent}");
        let now_ns = 10 * SECOND - 1;
        assert!(limits.admit_full_path(container(1, 77), now_ns).is_err());
        assert!(limits.admit_full_path(container(2, 1), now_ns).is_ok());
    }

    #[test]
    fn a_segment_is_charged_when_it_is_accepted() {
        let limits = Arc::new(Limits::new(7));
        let client = container(1, 1);
        let taken = (0..100_000)
            .filter(|_| limits.admit_segment(client, 0).is_ok())
            .count() as u64;
        assert_eq!(taken, 100_000_000 / SEGMENT_NS);
        assert_eq!(limits.admit_segment(client, 0).err(), Some(Refusal::Work));
        let waiting: Vec<Share> = (0..1_000)
            .filter_map(|_| limits.admit_segment(container(1, 2), 0).ok())
            .collect();
        assert_eq!(waiting.len(), Pool::Segments.bounds().local as usize);
    }

    #[test]
    fn a_query_over_a_stream_is_charged_even_on_the_fast_path() {
        let limits = Limits::new(7);
        let answered = (0..200_000)
            .filter(|_| limits.admit_streamed(container(1, 1), 0))
            .count() as u64;
        assert_eq!(answered, 100_000_000 / STREAMED_NS);
        assert!(limits.admit_streamed(container(1, 2), 0));
    }

    #[test]
    fn a_client_has_a_share_of_a_pool_and_returns_it() {
        for pool in [
            Pool::FullPath,
            Pool::Forwards,
            Pool::Connections,
            Pool::Segments,
            Pool::Memory,
        ] {
            let limits = Arc::new(Limits::new(7));
            let shares = take_all(&limits, pool, container(1, 1));
            assert_eq!(shares.len(), pool.bounds().local as usize, "{pool:?}");
            assert!(limits.take(pool, container(1, 2), 1).is_some(), "{pool:?}");
            drop(shares);
            assert!(limits.take(pool, container(1, 1), 1).is_some(), "{pool:?}");
            let counts = limits.held.iter().map(|n| n.load(Ordering::Relaxed));
            assert_eq!(counts.sum::<u32>(), 0, "{pool:?}");
        }
    }

    #[test]
    fn however_many_clients_use_their_shares_a_new_client_gets_a_slot() {
        for pool in [Pool::FullPath, Pool::Forwards, Pool::Connections] {
            let limits = Arc::new(Limits::new(7));
            let mut shares = Vec::new();
            // A thousand addresses of one bridge, as a container may forge them, and then a few more bridges.
            for n in 0..1_000 {
                shares.extend(take_all(&limits, pool, container(1, n)));
            }
            let half = pool.bounds().all as usize / 2;
            assert_eq!(shares.len(), half, "{pool:?}");
            for network in 2..6 {
                for n in 0..50 {
                    shares.extend(take_all(&limits, pool, container(network, n)));
                }
            }
            assert!(
                limits.take(pool, container(7, 1), 1).is_some(),
                "{pool:?}: {} taken",
                shares.len()
            );
        }
    }

    #[test]
    fn other_nodes_have_few_places_and_their_own() {
        let limits = Arc::new(Limits::new(7));
        let mut shares = take_all(&limits, Pool::Connections, peer(2));
        assert_eq!(shares.len(), 8);
        for block in 3..500 {
            shares.extend(take_all(&limits, Pool::Connections, peer(block)));
        }
        assert_eq!(shares.len(), 64);
        let local = take_all(&limits, Pool::Connections, container(1, 1));
        assert_eq!(local.len(), 32);
        assert!(limits.take(Pool::Forwards, peer(2), 1).is_none());
        let asked = (0..20_000).filter(|_| limits.admits(peer(2), 0)).count();
        assert_eq!(asked, 5_000);
        assert!(limits.admits(peer(3), 0));
    }

    #[test]
    fn other_nodes_together_have_a_small_part_of_a_core() {
        let limits = Arc::new(Limits::new(7));
        let work = Work {
            walked: 2_000,
            written: 12_000,
        };
        let of_one = served(&limits, peer(2), work, 0) * work.nanoseconds();
        assert!(of_one < SECOND / 20, "{of_one}");
        let mut of_all = 0;
        for now_ns in (10 * SECOND..20 * SECOND).step_by(100_000) {
            for block in 2..12 {
                if limits.admit_full_path(peer(block), now_ns).is_ok() {
                    limits.charge(peer(block), work, now_ns);
                    of_all += work.nanoseconds();
                }
            }
        }
        assert!(of_all < 10 * SECOND / 20 + SECOND / 10, "{of_all}");
    }
}
