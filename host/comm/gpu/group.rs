//! What the ranks of one group share on the host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::crew::Region;
use super::failure::Alarms;
use super::meeting::Meeting;
use super::options::GroupOptions;
use crate::comm::{CommError, Shape};

/// What a rank brings to a meeting.
#[derive(Debug, Clone)]
pub(super) enum Item {
    /// Its region of a new buffer.
    Region(Arc<Region>),
    /// Whether its part of the buffer exists.
    Made(bool),
    /// The group that it wants to be in, and its place there.
    Split { colour: usize, key: usize },
    /// The new group, made by the first of its members.
    Group(Option<Arc<Group>>),
}

/// All ranks, and the groups split from them.
#[derive(Debug)]
pub(super) struct World {
    pub(super) options: GroupOptions,
    /// Where each rank's failure is noted.
    alarms: Vec<(Arc<Alarms>, usize)>,
    /// The members of each group, by number.
    groups: Mutex<Vec<Vec<usize>>>,
}

/// One communicator as all of its ranks see it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) world: Arc<World>,
    pub(super) number: u32,
    pub(super) shape: Shape,
    /// The number in the world of each rank.
    pub(super) members: Vec<usize>,
    pub(super) meeting: Meeting<Item>,
}

impl World {
    pub(super) fn new(options: GroupOptions, alarms: Vec<(Arc<Alarms>, usize)>) -> Arc<Self> {
        Arc::new(Self { options, alarms, groups: Mutex::default() })
    }

    /// The failure of a rank, else that of another one that will make it fail, too.
    pub(super) fn check(&self, rank: usize) -> Result<(), CommError> {
        if let Some(error) = self.failure(rank) {
            return Err(error);
        }
        let failed = (0..self.alarms.len()).find_map(|peer| Some((peer, self.failure(peer)?)));
        failed.map_or(Ok(()), |(peer, error)| {
            Err(CommError::PeerFailed { rank, peer, cause: error.to_string() })
        })
    }

    fn failure(&self, rank: usize) -> Option<CommError> {
        let (alarms, index) = &self.alarms[rank];
        let record = alarms.read(*index)?;
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let members = groups.get(record.group() as usize).map_or(&[][..], Vec::as_slice);
        Some(record.error(members, self.options.time_limit))
    }
}

impl Group {
    pub(super) fn new(world: &Arc<World>, shape: Shape, members: Vec<usize>) -> Arc<Self> {
        let mut groups = world.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.push(members.clone());
        let number = groups.len() as u32 - 1;
        drop(groups);
        let meeting = Meeting::new(members.clone(), world.options.meeting_limit);
        Arc::new(Self { world: Arc::clone(world), number, shape, members, meeting })
    }

    /// The new group of `rank` and its rank there.
    pub(super) fn split(
        self: &Arc<Self>,
        rank: usize,
        colour: usize,
        key: usize,
    ) -> Result<(Arc<Self>, usize), CommError> {
        let wishes = self.meeting.exchange(rank, "split".to_owned(), Item::Split { colour, key })?;
        let mut colours: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for (peer, wish) in wishes.iter().enumerate() {
            if let Item::Split { colour, key } = *wish {
                colours.entry(colour).or_default().push((key, peer));
            }
        }
        let mut ranks = colours.remove(&colour).unwrap_or_default();
        ranks.sort_unstable();
        let ranks: Vec<usize> = ranks.into_iter().map(|(_, peer)| peer).collect();
        let leads = ranks.first() == Some(&rank);
        let members = || ranks.iter().map(|&peer| self.members[peer]).collect();
        let new = leads.then(|| Self::new(&self.world, self.shape.subgroup(&ranks), members()));
        let groups = self.meeting.exchange(rank, "split".to_owned(), Item::Group(new))?;
        let place = ranks.iter().position(|&peer| peer == rank).expect("a rank is in its own group");
        match &groups[ranks[0]] {
            Item::Group(Some(group)) => Ok((Arc::clone(group), place)),
            other => unreachable!("the first member makes the group, not {other:?}"),
        }
    }
}
