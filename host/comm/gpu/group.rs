//! What the ranks of one group share on the host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::failure::Alarms;
use super::meeting::Meeting;
use super::options::GroupOptions;
use super::processes::Processes;
use super::region::Region;
use crate::comm::topology::same_colour;
use crate::comm::{CommError, Shape};

/// What a rank brings to a meeting of threads.
#[derive(Debug, Clone)]
pub(super) enum Item {
    /// Its region of a new buffer.
    Region(Arc<Region>),
    /// Whether its part of the buffer exists.
    Made(bool),
    /// The group that it wants to be in, and its place there.
    Split(Wish),
    /// The new group, made by the first of its members.
    Group(Option<Arc<Group>>),
}

/// Where a rank wants to be after a split.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) colour: usize,
    pub(super) key: usize,
}

/// All ranks, and the groups split from them.
#[derive(Debug)]
pub(super) struct World {
    pub(super) options: GroupOptions,
    /// Where the failure of each rank of this process is noted, by rank.
    alarms: BTreeMap<usize, (Arc<Alarms>, usize)>,
    /// The members of each group, by number.
    groups: Mutex<Vec<Vec<usize>>>,
    /// The other processes, where ranks are processes.
    pub(super) processes: Option<Processes>,
}

/// One communicator as all of its ranks see it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) world: Arc<World>,
    pub(super) number: u32,
    pub(super) shape: Shape,
    /// The number in the world of each rank.
    pub(super) members: Vec<usize>,
    /// Where its ranks meet if they are threads of this process.
    pub(super) meeting: Meeting<Item>,
}

impl World {
    /// Ranks that are all here.
    pub(super) fn of_threads(options: GroupOptions, alarms: Vec<(Arc<Alarms>, usize)>) -> Arc<Self> {
        let alarms = alarms.into_iter().enumerate().collect();
        Arc::new(Self { options, alarms, groups: Mutex::default(), processes: None })
    }

    /// Ranks of which this process is one.
    pub(super) fn of_processes(
        options: GroupOptions,
        alarms: Arc<Alarms>,
        processes: Processes,
    ) -> Arc<Self> {
        let alarms = BTreeMap::from([(processes.rank(), (alarms, 0))]);
        Arc::new(Self { options, alarms, groups: Mutex::default(), processes: Some(processes) })
    }

    /// The failure of a rank, else that of another one that will make it fail, too.
    pub(super) fn check(&self, rank: usize) -> Result<(), CommError> {
        if let Some(error) = self.failure(rank) {
            if let Some(processes) = &self.processes {
                processes.tell(&error);
            }
            return Err(error);
        }
        let elsewhere = self.processes.as_ref().and_then(Processes::failure);
        let here = || self.alarms.keys().find_map(|&peer| Some((peer, self.failure(peer)?.to_string())));
        let failed = elsewhere.or_else(here);
        failed.map_or(Ok(()), |(peer, cause)| Err(CommError::PeerFailed { rank, peer, cause }))
    }

    fn failure(&self, rank: usize) -> Option<CommError> {
        let (alarms, index) = self.alarms.get(&rank)?;
        let record = alarms.read(*index)?;
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let members = groups.get(record.group() as usize).map_or(&[][..], Vec::as_slice);
        Some(record.error(members, self.options.time_limit))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let failed = self.alarms.keys().any(|&rank| self.failure(rank).is_some());
        if let Some(processes) = &self.processes {
            processes.end(failed);
        }
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
        let wishes = self.wishes(rank, Wish { colour, key })?;
        let wishes: Vec<_> = wishes.iter().map(|wish| (wish.colour, wish.key)).collect();
        let ranks = same_colour(&wishes, rank);
        let place = ranks.iter().position(|&peer| peer == rank).expect("a rank is in its own group");
        let new = || {
            let members = ranks.iter().map(|&peer| self.members[peer]).collect();
            Self::new(&self.world, self.shape.subgroup(&ranks), members)
        };
        if self.world.processes.is_some() {
            return Ok((new(), place));
        }
        let made = Item::Group((place == 0).then(new));
        match &self.meeting.exchange(rank, "split".to_owned(), made)?[ranks[0]] {
            Item::Group(Some(group)) => Ok((Arc::clone(group), place)),
            other => unreachable!("the first member makes the group, not {other:?}"),
        }
    }

    fn wishes(&self, rank: usize, mine: Wish) -> Result<Vec<Wish>, CommError> {
        if let Some(processes) = &self.world.processes {
            return processes.wishes(self, mine);
        }
        let items = self.meeting.exchange(rank, "split".to_owned(), Item::Split(mine))?;
        let wish = |item: &Item| match item {
            Item::Split(wish) => *wish,
            other => unreachable!("ranks agreed to split, not on {other:?}"),
        };
        Ok(items.iter().map(wish).collect())
    }
}
