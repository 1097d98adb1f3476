//! The owner of an address, compared with the result of a search through all prefixes.

use std::net::IpAddr;

use meshd::tunnel::allowed_ips::AllowedIps;

const CASES: u64 = 5_000_000;
/// Cases in which nobody owned the address, or somebody did, at least.
const EACH: u64 = CASES / 20;
/// Lookups in one table.
const LOOKUPS: u64 = 2_000;
/// Prefixes of a table at most.
const PREFIXES: u64 = 24;

/// Random numbers from a seed (xorshift64*, Vigna 2016): the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 32) % limit
    }

    fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

/// A prefix as the oracle sees it: the first `length` bits of an address of `width` bits, at the top.
#[derive(Clone, Copy)]
struct Prefix {
    v6: bool,
    bits: u128,
    length: u32,
}

impl Prefix {
    fn contains(self, v6: bool, address: u128) -> bool {
        let differ = self.bits ^ address;
        self.v6 == v6 && differ.leading_zeros() >= self.length
    }
}

/// An address whose bits are the top ones of `bits`.
fn address(v6: bool, bits: u128) -> IpAddr {
    match v6 {
        true => IpAddr::V6(bits.into()),
        false => IpAddr::V4(((bits >> 96) as u32).into()),
    }
}

#[test]
fn five_million_lookups_agree_with_trying_every_prefix() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut owned, mut unowned) = (0, 0);
    for _ in 0..CASES / LOOKUPS {
        let mut prefixes: Vec<Prefix> = Vec::new();
        for _ in 0..random.below(PREFIXES) {
            let v6 = random.below(2) == 1;
            let width = if v6 { 128 } else { 32 };
            // Half of them lie inside or around another one.
            let bits = match prefixes.get(random.below(PREFIXES * 2) as usize) {
                Some(near) => near.bits ^ (random.wide() >> random.below(128)),
                None => random.wide(),
            };
            let length = random.below(width + 1) as u32;
            prefixes.push(Prefix { v6, bits, length });
        }
        let table = AllowedIps::new(prefixes.iter().enumerate().map(|(n, prefix)| {
            let address = address(prefix.v6, prefix.bits);
            let net = ipnet::IpNet::new(address, prefix.length as u8).expect("a length in range");
            (net, n)
        }));
        for _ in 0..LOOKUPS {
            let v6 = random.below(2) == 1;
            let bits = match prefixes.get(random.below(PREFIXES) as usize) {
                Some(near) => near.bits ^ (random.wide() >> random.below(128)),
                None => random.wide(),
            };
            // Only the bits there are in an IPv4 address.
            let bits = if v6 { bits } else { bits >> 96 << 96 };
            // The longest that contains it; of equal ones the last.
            let mut expected: Option<(u32, usize)> = None;
            for (n, prefix) in prefixes.iter().enumerate() {
                if prefix.contains(v6, bits)
                    && expected.is_none_or(|(longest, _)| prefix.length >= longest)
                {
                    expected = Some((prefix.length, n));
                }
            }
            let expected = expected.map(|(_, n)| n);
            let found = table.owner(address(v6, bits)).copied();
            assert_eq!(found, expected, "{}", address(v6, bits));
            match found {
                Some(_) => owned += 1,
                None => unowned += 1,
            }
        }
    }
    assert_eq!(owned + unowned, CASES);
    assert!(
        owned > EACH && unowned > EACH,
        "{owned} owned, {unowned} not"
    );
}
