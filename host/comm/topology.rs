//! Which rank sits where: nodes, the ranks in them, and the groups split from them.

use std::{fmt, str::FromStr};

use super::rank_list::RankList;

/// Nodes and ranks per node, without saying which rank one is. Written `NODESxGPUS`, such as `2x4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Number of nodes, at least 1.
    pub nodes: usize,
    /// Ranks in each node, at least 1.
    pub gpus_per_node: usize,
}

/// One rank's view of a [`Shape`]. Ranks are node-contiguous: rank = node · `gpus_per_node` + local.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Topology {
    /// Number of nodes, at least 1.
    pub nodes: usize,
    /// Ranks in each node, at least 1.
    pub gpus_per_node: usize,
    /// This rank, below `nodes · gpus_per_node`.
    pub rank: usize,
}

/// Why a topology cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The text does not have the form `NxG`.
    #[error("'{text}' is not a topology: write NODESxGPUS, two whole numbers, such as 2x4")]
    Malformed {
        /// What was written.
        text: String,
    },
    /// A side is zero.
    #[error("topology {nodes}x{gpus_per_node} has no ranks: both numbers must be at least 1")]
    Empty {
        /// Nodes asked for.
        nodes: usize,
        /// Ranks per node asked for.
        gpus_per_node: usize,
    },
    /// The product does not fit a machine word.
    #[error("topology {nodes}x{gpus_per_node} has more ranks than can be counted")]
    TooLarge {
        /// Nodes asked for.
        nodes: usize,
        /// Ranks per node asked for.
        gpus_per_node: usize,
    },
    /// The rank is not in the shape.
    #[error("rank {rank} is not in topology {shape}: its ranks are 0 to {}", shape.world() - 1)]
    NoSuchRank {
        /// The rank asked for.
        rank: usize,
        /// The shape.
        shape: Shape,
    },
    /// A host's ranks do not follow each other.
    #[error(
        "{} share host {host}, with ranks of other hosts between them: start ranks host by host (srun \
         --distribution=block, mpirun --map-by slot), or say with --topology what counts as a node",
        RankList(ranks)
    )]
    Scattered {
        /// The host.
        host: String,
        /// Its ranks.
        ranks: Vec<usize>,
    },
    /// Hosts have different numbers of ranks.
    #[error(
        "host {host} has {ranks} ranks, but host {other} has {other_ranks}: start equally many on each, or say with \
         --topology what counts as a node"
    )]
    Uneven {
        /// The first host.
        host: String,
        /// Its ranks.
        ranks: usize,
        /// A host that differs.
        other: String,
        /// Its ranks.
        other_ranks: usize,
    },
}

impl Shape {
    /// Checks both sides: at least 1, and a product that can be counted.
    ///
    /// # Errors
    /// [`TopologyError::Empty`], [`TopologyError::TooLarge`].
    pub fn new(nodes: usize, gpus_per_node: usize) -> Result<Self, TopologyError> {
        match nodes.checked_mul(gpus_per_node) {
            None => Err(TopologyError::TooLarge { nodes, gpus_per_node }),
            Some(0) => Err(TopologyError::Empty { nodes, gpus_per_node }),
            Some(_) => Ok(Self { nodes, gpus_per_node }),
        }
    }

    /// Number of ranks.
    pub const fn world(&self) -> usize {
        self.nodes * self.gpus_per_node
    }

    /// The shape of a group of some of this shape's ranks, in their new order.
    ///
    /// If the members come node by node, equally many from each node, the group keeps that structure.
    /// Otherwise every member is a node of its own, which is always correct: no two of them need share one.
    pub fn subgroup(&self, members: &[usize]) -> Self {
        let flat = Self { nodes: members.len(), gpus_per_node: 1 };
        let node_of = |rank: &usize| rank / self.gpus_per_node;
        let runs: Vec<&[usize]> = members.chunk_by(|a, b| node_of(a) == node_of(b)).collect();
        let mut nodes: Vec<usize> = runs.iter().map(|run| node_of(&run[0])).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let contiguous = nodes.len() == runs.len();
        match runs.first() {
            Some(first) if contiguous && runs.iter().all(|run| run.len() == first.len()) => {
                Self { nodes: runs.len(), gpus_per_node: first.len() }
            }
            _ => flat,
        }
    }
}

impl FromStr for Shape {
    type Err = TopologyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || TopologyError::Malformed { text: text.to_owned() };
        let (nodes, gpus) = text.split_once(['x', 'X']).ok_or_else(malformed)?;
        let number = |side: &str| side.trim().parse::<usize>().map_err(|_| malformed());
        Self::new(number(nodes)?, number(gpus)?)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.nodes, self.gpus_per_node)
    }
}

impl Topology {
    /// Rank `rank` of `nodes` × `gpus_per_node`.
    ///
    /// # Errors
    /// As [`Shape::new`], and [`TopologyError::NoSuchRank`].
    pub fn new(nodes: usize, gpus_per_node: usize, rank: usize) -> Result<Self, TopologyError> {
        let shape = Shape::new(nodes, gpus_per_node)?;
        if rank >= shape.world() {
            return Err(TopologyError::NoSuchRank { rank, shape });
        }
        Ok(Self { nodes, gpus_per_node, rank })
    }

    /// The shape without the rank.
    pub const fn shape(&self) -> Shape {
        Shape { nodes: self.nodes, gpus_per_node: self.gpus_per_node }
    }

    /// Number of ranks.
    pub const fn world(&self) -> usize {
        self.nodes * self.gpus_per_node
    }

    /// The node this rank is in.
    pub const fn node(&self) -> usize {
        self.rank / self.gpus_per_node
    }

    /// This rank's number within its node.
    pub const fn local(&self) -> usize {
        self.rank % self.gpus_per_node
    }

    /// The rank at place `local` of node `node`.
    pub const fn rank_of(&self, node: usize, local: usize) -> usize {
        node * self.gpus_per_node + local
    }
}

/// The members of the group that `rank` wishes to be in, in their order there. `wishes` are colour and key, by rank.
pub(super) fn same_colour(wishes: &[(usize, usize)], rank: usize) -> Vec<usize> {
    let mut ranks: Vec<usize> =
        (0..wishes.len()).filter(|&other| wishes[other].0 == wishes[rank].0).collect();
    ranks.sort_by_key(|&other| wishes[other].1);
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_node_contiguous() {
        for nodes in 1..6 {
            for gpus in 1..6 {
                for rank in 0..nodes * gpus {
                    let topology = Topology::new(nodes, gpus, rank).unwrap();
                    assert!(topology.node() < nodes && topology.local() < gpus);
                    assert_eq!(topology.rank_of(topology.node(), topology.local()), rank);
                }
            }
        }
    }

    #[test]
    fn a_rank_outside_is_refused() {
        let error = Topology::new(2, 3, 6).unwrap_err();
        assert_eq!(error.to_string(), "rank 6 is not in topology 2x3: its ranks are 0 to 5");
    }

    #[test]
    fn shapes_are_read_and_written() {
        for text in ["1x1", "2x4", "3x1", "12x9"] {
            assert_eq!(text.parse::<Shape>().unwrap().to_string(), text);
        }
        assert_eq!("2X4".parse(), Ok(Shape { nodes: 2, gpus_per_node: 4 }));
    }

    #[test]
    fn wrong_shapes_get_a_sentence() {
        for text in ["", "2", "2x", "x3", "axb", "2x3x4", "-1x2", "1.5x2", "99999999999999999999x1"] {
            let message = text.parse::<Shape>().unwrap_err().to_string();
            assert!(message.contains(&format!("'{text}'")) && message.contains("such as 2x4"), "{message}");
        }
        let zero = "0x3".parse::<Shape>().unwrap_err().to_string();
        assert_eq!(zero, "topology 0x3 has no ranks: both numbers must be at least 1");
        assert!(matches!("9999999999x9999999999".parse::<Shape>(), Err(TopologyError::TooLarge { .. })));
    }

    #[test]
    fn subgroups_keep_nodes_where_they_are_even() {
        let parent = Shape { nodes: 2, gpus_per_node: 4 };
        let subgroup = |members: &[usize]| parent.subgroup(members).to_string();
        assert_eq!(subgroup(&[0, 1, 2, 3]), "1x4");
        assert_eq!(subgroup(&[0, 1, 4, 5]), "2x2");
        assert_eq!(subgroup(&[6, 7, 2, 3]), "2x2");
        assert_eq!(subgroup(&[0, 4]), "2x1");
        assert_eq!(subgroup(&[0, 1, 4]), "3x1", "uneven");
        assert_eq!(subgroup(&[0, 4, 1, 5]), "4x1", "not node-contiguous");
        assert_eq!(subgroup(&[5]), "1x1");
    }
}
