//! Who owns and exchanges what: the schedule of `comm::schedule` on the host, as a GPU rank computes it.
//! Uses `core` alone and is compiled on both sides; a test there compares the two.

/// A rank's place in its group.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Nodes of the group.
    pub nodes: u32,
    /// Ranks in each node.
    pub gpus: u32,
    /// This rank's node.
    pub node: u32,
    /// Its number there.
    pub local: u32,
}

impl Place {
    /// Of `rank`; ranks are node-contiguous.
    #[inline(always)]
    pub fn new(nodes: u32, gpus: u32, rank: u32) -> Self {
        Self { nodes, gpus, node: rank / gpus, local: rank % gpus }
    }

    /// The rank at place `local` of this node.
    #[inline(always)]
    pub fn neighbour(&self, local: u32) -> u32 {
        self.node * self.gpus + local
    }

    /// Of `rank` in a group of one node.
    #[inline(always)]
    pub fn in_one_node(gpus: u32, rank: u32) -> Self {
        Self { nodes: 1, gpus, node: 0, local: rank }
    }

    /// The local number that comes `n` after this rank's, round the node.
    #[inline(always)]
    pub fn after(&self, n: u32) -> u32 {
        let local = self.local + n;
        if local < self.gpus { local } else { local - self.gpus }
    }

    /// The rank of this local number in another node.
    #[inline(always)]
    pub fn counterpart(&self, node: u32) -> u32 {
        node * self.gpus + self.local
    }

    /// First unit and number of units of the shard that `local` owns: whole granules, shares differing by at
    /// most one, the larger ones first.
    #[inline(always)]
    pub fn shard(&self, units: u32, granule: u32, local: u32) -> (u32, u32) {
        let granules = units.div_ceil(granule);
        let (each, more) = (granules / self.gpus, granules % self.gpus);
        let first = (local * each + local.min(more)) * granule;
        let end = ((local + 1) * each + (local + 1).min(more)) * granule;
        (first.min(units), end.min(units) - first.min(units))
    }

    /// Rounds of doubling between nodes: those of the largest power of two of nodes.
    #[inline(always)]
    pub fn doublings(&self) -> u32 {
        self.nodes.ilog2()
    }

    /// The round in which nodes beyond that power get the result.
    #[inline(always)]
    pub fn last_round(&self) -> u32 {
        self.doublings() + 1
    }

    /// With whom this rank exchanges its shard in a round of the put phase, and in which directions:
    /// (peer, sends, receives). Round 0 folds the nodes beyond the power of two in, the last one out.
    #[inline(always)]
    pub fn exchange(&self, round: u32) -> Option<(u32, bool, bool)> {
        let power = 1 << self.doublings();
        let (first, last) = (round == 0, round == self.last_round());
        if self.node >= power {
            return (first || last).then(|| (self.counterpart(self.node - power), first, last));
        }
        if !first && !last {
            return Some((self.counterpart(self.node ^ (1 << (round - 1))), true, true));
        }
        let folded = self.node + power;
        (folded < self.nodes).then(|| (self.counterpart(folded), last, first))
    }

    /// The receiver's slot of a shard from `local` in the reduce phase.
    #[inline(always)]
    pub fn reduce_slot(&self, local: u32) -> u32 {
        local
    }

    /// The receiver's slot of a round of the put phase.
    #[inline(always)]
    pub fn put_slot(&self, round: u32) -> u32 {
        self.gpus + round
    }

    /// The receiver's slot of a shard from `local` in the broadcast phase.
    #[inline(always)]
    pub fn broadcast_slot(&self, local: u32) -> u32 {
        let rounds = if self.nodes == 1 { 0 } else { self.last_round() + 1 };
        self.gpus + rounds + local
    }
}
