//! Collective requests of the host: every rank proposes, the last one concludes, all take the outcome.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{group::Group, slot::SlotTable};
use crate::comm::{CommError, topology::same_colour};

/// What a rank asks of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Proposal {
    Register { bytes: usize },
    Split { colour: usize, key: usize },
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register { bytes } => write!(f, "register({bytes} bytes)"),
            Self::Split { colour, key } => write!(f, "split(colour {colour}, key {key})"),
        }
    }
}

/// What everybody gets.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    Registered(Arc<SlotTable>),
    /// For each rank of the old group its new group and its rank there.
    Split(Arc<[(Arc<Group>, usize)]>),
    Refused(CommError),
}

impl Outcome {
    pub(super) fn table(&self) -> Option<&Arc<SlotTable>> {
        match self {
            Self::Registered(table) => Some(table),
            _ => None,
        }
    }
}

/// One meeting after the other; `turn` numbers them.
#[derive(Debug)]
pub(super) struct Meeting {
    turn: u64,
    proposals: Vec<Option<Proposal>>,
    outcome: Option<Outcome>,
    departed: usize,
}

impl Meeting {
    pub(super) fn new(world: usize) -> Self {
        Self { turn: 0, proposals: vec![None; world], outcome: None, departed: 0 }
    }

    pub(super) fn turn(&self) -> u64 {
        self.turn
    }

    pub(super) fn is_concluded(&self) -> bool {
        self.outcome.is_some()
    }

    pub(super) fn missing(&self) -> Vec<usize> {
        (0..self.proposals.len()).filter(|&rank| self.proposals[rank].is_none()).collect()
    }

    /// Returns whether it was the last proposal.
    pub(super) fn propose(&mut self, rank: usize, proposal: Proposal) -> bool {
        self.proposals[rank] = Some(proposal);
        self.proposals.iter().all(Option::is_some)
    }

    pub(super) fn conclude(&mut self, group: &Group) -> &Outcome {
        let proposals: Vec<_> = self.proposals.iter().flatten().collect();
        self.outcome.insert(decide(group, &proposals))
    }

    /// Takes the outcome; the last one to do so opens the next meeting.
    pub(super) fn depart(&mut self) -> Outcome {
        let outcome = self.outcome.clone().expect("ranks depart from a concluded meeting only");
        self.departed += 1;
        if self.departed == self.proposals.len() {
            *self = Self { turn: self.turn + 1, ..Self::new(self.departed) };
        }
        outcome
    }
}

fn decide(group: &Group, proposals: &[&Proposal]) -> Outcome {
    let agrees = |other: &Proposal| match (proposals[0], other) {
        (Proposal::Split { .. }, Proposal::Split { .. }) => true,
        (first, other) => first == other,
    };
    if let Some(other) = proposals.iter().position(|proposal| !agrees(proposal)) {
        return Outcome::Refused(CommError::Disagreement {
            rank: group.world_rank(0),
            call: proposals[0].to_string(),
            other: group.world_rank(other),
            other_call: proposals[other].to_string(),
        });
    }
    match proposals[0] {
        Proposal::Register { .. } => Outcome::Registered(group.new_table()),
        Proposal::Split { .. } => Outcome::Split(split(group, proposals)),
    }
}

fn split(group: &Group, proposals: &[&Proposal]) -> Arc<[(Arc<Group>, usize)]> {
    let wish = |proposal: &&Proposal| match **proposal {
        Proposal::Split { colour, key } => Some((colour, key)),
        Proposal::Register { .. } => None,
    };
    let wishes: Vec<_> = proposals.iter().filter_map(wish).collect();
    let mut groups: BTreeMap<usize, Arc<Group>> = BTreeMap::new();
    let place = |rank: usize| {
        let ranks = same_colour(&wishes, rank);
        let new = || {
            let members = ranks.iter().map(|&rank| group.world_rank(rank)).collect();
            let (options, family) = (group.options.clone(), Arc::clone(&group.family));
            Group::new(group.shape.subgroup(&ranks), members, options, family)
        };
        let index = ranks.iter().position(|&member| member == rank).expect("a rank has its own colour");
        (Arc::clone(groups.entry(wishes[rank].0).or_insert_with(new)), index)
    };
    (0..wishes.len()).map(place).collect()
}
