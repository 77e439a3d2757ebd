//! The Maglev table: from the hash of a client to a backend, in one step, and the same on every node.
//!
//! Owns the filling (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4). Each member prefers the table's places in an order of its own, which follows from its identity alone;
//! in turns, each takes the first place of its order that is free, until none is. So places are shared as evenly as
//! turns are, and when a member leaves, hardly any place changes its owner but its own. Turns go by weight: in each
//! round a member of weight w has w of them, the k-th at (2k + 1) / 2w of the round, and those of one moment in the
//! order of the identities; with equal weights that is the filling of the paper.
//!
//! Invariant: identities, weights and size decide everything. The order in which the members are handed over doesn't.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Of the hash that says which place a member prefers to all others.
const FIRST_SEED: u64 = 1;
/// Of the hash that says how many places further it looks next.
const SKIP_SEED: u64 = 2;

/// Which member each place belongs to, as its index among those that were handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maglev(Box<[u16]>);

/// The places that one member would like, best first: `next`, and then always `skip` further, around.
struct Preference {
    next: u32,
    skip: u32,
}

impl Maglev {
    /// A table of `size` places, a prime, for members with these identities and weights (at least 1 each); at most
    /// 65,535 of them. Empty if there are none; and a member whose weight is less than a place's worth may have no
    /// place.
    #[must_use]
    pub fn new<I: AsRef<str>>(identities: &[I], weights: &[u16], size: u32) -> Self {
        debug_assert_eq!(identities.len(), weights.len());
        if identities.is_empty() {
            return Self(Box::default());
        }
        let mut order: Vec<u16> = (0..identities.len()).map(|index| index as u16).collect();
        order.sort_unstable_by_key(|&index| identities[usize::from(index)].as_ref());
        let mut preferences: Vec<Preference> =
            identities.iter().map(|identity| Preference::new(identity.as_ref(), size)).collect();
        let round = round(&order, weights, size);
        let mut places = vec![0_u16; size as usize].into_boxed_slice();
        // A bit for each place, since this is what is looked at all the time: it stays in the nearest cache.
        let mut taken = vec![0_u64; (size as usize).div_ceil(64)];
        let mut turns = round.iter().cycle();
        for _ in 0..size {
            let Some(&member) = turns.next() else { break };
            let place = preferences[usize::from(member)].take_free(size, &mut taken);
            places[place as usize] = member;
        }
        Self(places)
    }

    /// The members from the place of `key` on, each as often as it has places: `key` modulo the size, and then always
    /// a step further that follows from the key as well, around.
    ///
    /// With steps of one place, the clients of a member would not be spread evenly when it is passed over: its places
    /// lie at regular distances, and so do those beside them.
    pub fn from(&self, key: u64) -> impl Iterator<Item = usize> {
        let size = self.0.len();
        let start = (key % size.max(1) as u64) as usize;
        let step = (key.rotate_left(32) % (size.max(2) as u64 - 1)) as usize + 1;
        let mut next = start;
        (0..size).map(move |_| {
            let place = next;
            next = if place + step < size { place + step } else { place + step - size };
            usize::from(self.0[place])
        })
    }

    /// Which member each place belongs to.
    #[must_use]
    pub fn places(&self) -> &[u16] {
        &self.0
    }
}

impl Preference {
    fn new(identity: &str, size: u32) -> Self {
        let hash = |seed| xxh3_64_with_seed(identity.as_bytes(), seed);
        let (size, steps) = (u64::from(size), u64::from(size.saturating_sub(1)).max(1));
        Self { next: (hash(FIRST_SEED) % size) as u32, skip: (hash(SKIP_SEED) % steps + 1) as u32 }
    }

    /// The best place that is free; there must be one. Since the size is a prime, every place comes in its turn.
    fn take_free(&mut self, size: u32, taken: &mut [u64]) -> u32 {
        loop {
            let place = self.next;
            // The size is far below half of what fits.
            self.next += self.skip;
            if self.next >= size {
                self.next -= size;
            }
            let (word, bit) = (&mut taken[place as usize / 64], 1 << (place % 64));
            if *word & bit == 0 {
                *word |= bit;
                return place;
            }
        }
    }
}

/// Who has a turn after whom, in one round; of a long one only what fills `size` places.
fn round(order: &[u16], weights: &[u16], size: u32) -> Vec<u16> {
    let weight = |index: u16| u64::from(weights[usize::from(index)].max(1));
    let divisor = order.iter().map(|&index| weight(index)).fold(0, gcd).max(1);
    let total: u64 = order.iter().map(|&index| weight(index) / divisor).sum();
    // Moments in units of 2^-32 of a round: two that differ do so by more than 2^-18. Each stands above the position in
    // one word, because those are sorted fastest.
    let most = u64::from(size) + order.len() as u64;
    let enough = (most << 32) / total;
    let mut turns: Vec<u64> = Vec::with_capacity(total.min(most) as usize);
    for (position, &index) in order.iter().enumerate() {
        let own = weight(index) / divisor;
        let moments = (0..own).map(|k| ((2 * k + 1) << 32) / (2 * own)).take_while(|&moment| moment <= enough);
        turns.extend(moments.map(|moment| moment << 16 | position as u64));
    }
    turns.sort_unstable();
    turns.into_iter().map(|turn| order[usize::from(turn as u16)]).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use proptest::prelude::*;

    fn addresses(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("10.0.{}.{}:80", index / 250, index % 250 + 1)).collect()
    }

    fn counts(table: &Maglev, members: usize) -> Vec<usize> {
        let mut counts = vec![0; members];
        table.places().iter().for_each(|&member| counts[usize::from(member)] += 1);
        counts
    }

    /// To whom each place belongs, by identity.
    fn owners<'i>(table: &Maglev, identities: &'i [String]) -> Vec<&'i str> {
        table.places().iter().map(|&member| identities[usize::from(member)].as_str()).collect()
    }

    /// As long as these hold, two versions of the program send a client to the same backend.
    #[test]
    fn golden_vectors() {
        let identities = addresses(3);
        assert_eq!(Maglev::new(&identities, &[1; 3], 13).places(), [0, 0, 1, 0, 1, 0, 2, 0, 1, 2, 2, 1, 2]);
        assert_eq!(Maglev::new(&identities, &[1, 2, 4], 13).places(), [1, 0, 2, 1, 1, 2, 2, 0, 1, 2, 2, 2, 2]);
        let hash = |table: &Maglev| {
            let bytes: Vec<u8> = table.places().iter().flat_map(|member| member.to_le_bytes()).collect();
            xxh3_64_with_seed(&bytes, 0)
        };
        assert_eq!(hash(&Maglev::new(&identities, &[1; 3], 65_537)), 0xb0eb_c785_0593_7196);
        assert_eq!(hash(&Maglev::new(&addresses(100), &[1; 100], 65_537)), 0x129e_a43f_c64a_a15f);
        let weights: Vec<u16> = (0..100).map(|index| index % 7 + 1).collect();
        assert_eq!(hash(&Maglev::new(&addresses(100), &weights, 65_537)), 0x4cab_11ed_0963_1ef8);
    }

    /// The filling as the paper's pseudocode has it, with whole permutations.
    fn by_the_paper(identities: &[String], size: u32) -> Vec<u16> {
        let mut order: Vec<usize> = (0..identities.len()).collect();
        order.sort_by_key(|&index| &identities[index]);
        let permutations: Vec<Vec<u64>> = identities
            .iter()
            .map(|identity| {
                let offset = xxh3_64_with_seed(identity.as_bytes(), 1) % u64::from(size);
                let skip = xxh3_64_with_seed(identity.as_bytes(), 2) % u64::from(size - 1) + 1;
                (0..u64::from(size)).map(|j| (offset + j * skip) % u64::from(size)).collect()
            })
            .collect();
        let mut next = vec![0; identities.len()];
        let mut entry: Vec<Option<u16>> = vec![None; size as usize];
        let mut n = 0;
        loop {
            for &i in &order {
                let mut c = permutations[i][next[i]] as usize;
                while entry[c].is_some() {
                    next[i] += 1;
                    c = permutations[i][next[i]] as usize;
                }
                entry[c] = Some(i as u16);
                next[i] += 1;
                n += 1;
                if n == size {
                    return entry.into_iter().map(Option::unwrap).collect();
                }
            }
        }
    }

    #[test]
    fn equal_weights_fill_it_as_the_paper_does() {
        for (members, size) in [(1, 7), (3, 13), (10, 251), (100, 1_009), (1_000, 4_099)] {
            let identities = addresses(members);
            for weight in [1, 7] {
                let table = Maglev::new(&identities, &vec![weight; members], size);
                assert_eq!(table.places(), by_the_paper(&identities, size), "{members} of weight {weight}");
            }
        }
    }

    #[test]
    fn places_are_shared_by_weight_to_one_place() {
        for size in [251, 1_009, 65_537] {
            for weights in [vec![1; 7], vec![1, 2, 3, 4], vec![256, 1, 1], vec![5; 100], (1..=100).collect()] {
                let counts = counts(&Maglev::new(&addresses(weights.len()), &weights, size), weights.len());
                let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
                for (&count, &weight) in counts.iter().zip(&weights) {
                    let ideal = f64::from(size) * f64::from(weight) / total;
                    assert!(
                        (count as f64 - ideal).abs() < 1.0 + f64::EPSILON,
                        "{count} instead of {ideal}: {weights:?}"
                    );
                }
            }
        }
    }

    /// The rounds of these weights are longer than the table.
    #[test]
    fn a_round_longer_than_the_table_gives_each_its_share_as_well() {
        let weights: Vec<u16> = (0..1_000).map(|index| 255 + index % 2).collect();
        let counts = counts(&Maglev::new(&addresses(1_000), &weights, 1_009), 1_000);
        assert!(counts.iter().all(|count| (1..=2).contains(count)), "{counts:?}");
        let light = {
            let mut weights = vec![256; 1_000];
            weights[17] = 1;
            weights
        };
        assert!(Maglev::new(&addresses(1_000), &light, 1_009).places().iter().all(|&member| member != 17));
    }

    #[test]
    fn nobody_has_a_table_of_nothing() {
        let table = Maglev::new::<&str>(&[], &[], 251);
        assert_eq!((table.places().len(), table.from(7).next()), (0, None));
    }

    #[test]
    fn from_a_place_on_it_goes_all_around() {
        let table = Maglev::new(&addresses(13), &[1; 13], 13);
        // The lower half alone says where, the upper half alone how far.
        let key = 25 << 32 | (13 * 1_000 + 11 - (25_u64 << 32) % 13);
        let walk: Vec<usize> = table.from(key).collect();
        let step = (key.rotate_left(32) % 12) as usize + 1;
        let places: Vec<usize> = (0..13).map(|nth| usize::from(table.places()[(11 + nth * step) % 13])).collect();
        assert_eq!(walk, places);
        let mut sorted = walk;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..13));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn the_order_of_the_members_does_not_matter(
            members in prop::collection::vec(1_u16..=256, 1..60),
            size in prop::sample::select(vec![251_u32, 1_009, 4_099]),
            seed: u64,
        ) {
            let identities = addresses(members.len());
            let table = Maglev::new(&identities, &members, size);
            let mut order: Vec<usize> = (0..members.len()).collect();
            let mut rng = Rng::from_seed(seed);
            for last in (1..order.len()).rev() {
                order.swap(last, rng.index(last + 1));
            }
            let shuffled: Vec<String> = order.iter().map(|&index| identities[index].clone()).collect();
            let weights: Vec<u16> = order.iter().map(|&index| members[index]).collect();
            prop_assert_eq!(owners(&Maglev::new(&shuffled, &weights, size), &shuffled), owners(&table, &identities));
        }
    }

    /// How many places that weren't the leaving member's have another owner afterwards, of all places.
    fn moved_besides(identities: &[String], weights: &[u16], leaves: usize, size: u32) -> f64 {
        let before = Maglev::new(identities, weights, size);
        let (mut rest, mut lighter) = (identities.to_vec(), weights.to_vec());
        let gone = rest.remove(leaves);
        lighter.remove(leaves);
        let after = Maglev::new(&rest, &lighter, size);
        let (before, after) = (owners(&before, identities), owners(&after, &rest));
        let moved = before.iter().zip(&after).filter(|(was, is)| **was != gone && was != is).count();
        moved as f64 / f64::from(size)
    }

    /// Catalogue 27. The paper's figure 12 has a few per cent as well, for 1,000 backends and this size.
    #[test]
    fn f27_one_of_many_that_leaves_moves_its_own_clients_and_few_others() {
        for (members, most) in [(3, 0.01), (10, 0.02), (100, 0.03), (1_000, 0.06)] {
            let moved = moved_besides(&addresses(members), &vec![1; members], members / 2, 65_537);
            assert!(moved <= most, "{members}: {moved}");
        }
        let weights: Vec<u16> = (0..100).map(|index| index % 4 + 1).collect();
        let moved = moved_besides(&addresses(100), &weights, 50, 65_537);
        assert!(moved <= 0.03, "weighted: {moved}");
    }
}
