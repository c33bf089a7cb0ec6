//! Accesses when it matters who made them: races and weak memory.

use super::causality::{Causality, Release};
use super::history::{History, Message, expand};
use super::region::Region;
use super::shadow::{Context, Record, Shadow};
use super::space::{Place, RegionId};
use super::weak::Weak;
use super::{Access, AccessKind, Fault, Memory, RacingAccess, Result, Scope, Site, Thread, Width};

/// An access to bytes of one granule.
#[derive(Debug, Clone, Copy)]
struct Piece {
    region: RegionId,
    granule: usize,
    /// The first byte within the granule.
    start: u32,
    /// One bit per byte.
    mask: u8,
}

impl Piece {
    fn new(place: Place, mask: u8) -> Self {
        let start = (place.offset % 8) as u32;
        Self { region: place.region, granule: place.offset / 8, start, mask: mask << start }
    }
}

/// A region, and what decides about accesses to it.
struct Parts<'a> {
    region: &'a mut Region,
    causality: &'a mut Causality,
    weak: &'a mut Option<Weak>,
    race: bool,
}

impl Memory {
    fn parts(&mut self, region: RegionId) -> Parts<'_> {
        let region = match region {
            RegionId::Global(index) => self.space.region_mut(index),
            RegionId::Shared(block) => &mut self.blocks.get_mut(block).shared,
        };
        Parts { region, causality: &mut self.causality, weak: &mut self.weak, race: self.options.race }
    }

    pub(super) fn load_ordered(&mut self, access: &Access, place: Place, width: Width) -> Result<u64> {
        let piece = Piece::new(place, width.mask());
        let mut parts = self.parts(piece.region);
        let race = parts.check_race(access, &piece, AccessKind::Load);
        race.map_err(|first| self.race(first, access, &piece, AccessKind::Load))?;
        let mut parts = self.parts(piece.region);
        let seen = parts.choose(access, &piece);
        Ok((parts.read(access, &piece, seen) & expand(piece.mask)) >> (8 * piece.start))
    }

    pub(super) fn store_ordered(
        &mut self,
        access: &Access,
        place: Place,
        mask: u8,
        value: u64,
    ) -> Result<()> {
        let piece = Piece::new(place, mask);
        let race = self.parts(piece.region).check_race(access, &piece, AccessKind::Store);
        race.map_err(|first| self.race(first, access, &piece, AccessKind::Store))?;
        let releases = self.parts(piece.region).releases(access, &piece);
        self.parts(piece.region).write(access, &piece, value << (8 * piece.start), releases, false);
        Ok(())
    }

    pub(super) fn rmw_ordered(
        &mut self,
        access: &Access,
        place: Place,
        width: Width,
        update: impl FnOnce(u64) -> Option<u64>,
    ) -> Result<u64> {
        let piece = Piece::new(place, width.mask());
        let mut parts = self.parts(piece.region);
        // A store that is not morally strong with this access may come between its two halves.
        let newest = parts.newest(&piece);
        let whole = newest.is_none_or(|at| parts.is_morally_strong(access, &piece, at));
        let seen = if whole { newest } else { parts.choose(access, &piece) };
        if let Some(at) = newest.filter(|_| seen == newest) {
            parts.mark_observed(access.thread, &piece, at);
        }
        let race = parts.check_race(access, &piece, AccessKind::Atomic);
        race.map_err(|first| self.race(first, access, &piece, AccessKind::Atomic))?;
        let mut parts = self.parts(piece.region);
        let carried = match seen {
            Some(at) if parts.is_morally_strong(access, &piece, at) => parts.carried(&piece, at),
            _ => Vec::new(),
        };
        let old = (parts.read(access, &piece, seen) & expand(piece.mask)) >> (8 * piece.start);
        if let Some(new) = update(old) {
            let mut releases = parts.releases(access, &piece);
            for release in &carried {
                parts.causality.merge_release(&mut releases, release);
            }
            parts.write(access, &piece, new << (8 * piece.start), releases, whole);
        }
        Ok(old)
    }

    /// Checks and remembers the accesses of a range by one agent, a page at a time where it can.
    pub(super) fn range_ordered(
        &mut self,
        agent: Thread,
        place: Place,
        bytes: usize,
        kind: AccessKind,
    ) -> Result<()> {
        if !self.options.race {
            return Ok(());
        }
        let access = Access::weak(agent, Site::NONE);
        let mut at = place.offset;
        let end = place.offset + bytes;
        while at < end {
            let whole_page = at.is_multiple_of(8 * Shadow::PAGE) && end - at >= 8 * Shadow::PAGE;
            let length = if whole_page { 8 * Shadow::PAGE } else { (8 - at % 8).min(end - at) };
            let piece =
                Piece::new(Place { offset: at, ..place }, if whole_page { 0xff } else { ones(length) });
            let mut parts = self.parts(piece.region);
            let race = if whole_page {
                parts.check_race_of_page(&access, &piece, kind)
            } else {
                parts.check_race(&access, &piece, kind).map_err(|first| (first, piece.granule))
            };
            if let Err((first, granule)) = race {
                return Err(self.race(first, &access, &Piece { granule, ..piece }, kind));
            }
            at += length;
        }
        Ok(())
    }

    /// Everybody sees a range that has been written at once, and nothing older.
    pub(super) fn settle_range(&mut self, place: Place, bytes: usize) {
        let region = self.region_mut(place.region);
        if region.tracking.histories.is_empty() {
            return;
        }
        let mut histories = std::mem::take(&mut region.tracking.histories);
        let end = place.offset + bytes;
        histories.retain(|&granule, history| {
            let first = place.offset.clamp(granule * 8, granule * 8 + 8);
            let last = end.clamp(granule * 8, granule * 8 + 8);
            if first < last {
                history.overwrite(ones(last - first) << (first % 8), region.granule(granule));
            }
            !history.is_empty()
        });
        region.tracking.histories = histories;
    }

    /// Time passes: stores become visible to everybody.
    pub(super) fn settle_due(&mut self) {
        while let Some((region, granule, now)) = self.weak.as_mut().and_then(Weak::next_due) {
            let histories = &mut self.region_mut(region).tracking.histories;
            if let Some(history) = histories.get_mut(&granule) {
                history.settle(now);
                if history.is_empty() {
                    histories.remove(&granule);
                }
            }
        }
    }

    #[cold]
    fn race(&self, first: Record, access: &Access, piece: &Piece, kind: AccessKind) -> Box<Fault> {
        let Access { thread, site, .. } = *access;
        let second = RacingAccess { kind, thread, site, scope: strength(access) };
        let common = first.mask() & piece.mask;
        let offset = piece.granule as i64 * 8 + i64::from(common.trailing_zeros());
        let Record { kind, site, scope, .. } = first;
        let first = RacingAccess { kind, thread: first.thread(), site, scope };
        Box::new(Fault::Race { first, second, allocation: self.allocation(piece.region), offset })
    }
}

impl Parts<'_> {
    fn check_race(
        &mut self,
        access: &Access,
        piece: &Piece,
        kind: AccessKind,
    ) -> std::result::Result<(), Record> {
        if !self.race {
            return Ok(());
        }
        let view = self.causality.view(access.thread);
        let new = Record::new(&view, access.site, piece.mask, kind, strength(access));
        let tracking = &mut self.region.tracking;
        let (causality, histories, granule) = (&*self.causality, &tracking.histories, piece.granule);
        tracking.shadow.access(&new, &view, &Context { causality, histories, granule })
    }

    fn check_race_of_page(
        &mut self,
        access: &Access,
        piece: &Piece,
        kind: AccessKind,
    ) -> std::result::Result<(), (Record, usize)> {
        let view = self.causality.view(access.thread);
        let new = Record::new(&view, access.site, 0xff, kind, None);
        let tracking = &mut self.region.tracking;
        let (causality, histories, granule) = (&*self.causality, &tracking.histories, piece.granule);
        let mut context = Context { causality, histories, granule };
        let race = tracking.shadow.access_page(granule / Shadow::PAGE, &new, &view, &mut context);
        race.map_err(|first| (first, context.granule))
    }

    fn history(&self, piece: &Piece) -> Option<&History> {
        self.region.tracking.histories.get(&piece.granule)
    }

    fn newest(&self, piece: &Piece) -> Option<usize> {
        self.history(piece)?.newest(piece.mask)
    }

    /// The state of the granule that a load sees: as of a message, or before all.
    fn choose(&mut self, access: &Access, piece: &Piece) -> Option<usize> {
        let newest = self.newest(piece)?;
        let Some(weak) = self.weak else { return Some(newest) };
        let view = self.causality.view(access.thread);
        let states = self.region.tracking.histories.get(&piece.granule)?.readable(piece.mask, &view);
        weak.choose(&states, Some(newest))
    }

    /// Reads the granule as of `seen`, and takes what the stores read carry.
    fn read(&mut self, access: &Access, piece: &Piece, seen: Option<usize>) -> u64 {
        let newest = self.newest(piece);
        let value = match self.history(piece) {
            // The bytes themselves are always the newest.
            Some(history) if seen != newest => history.value(seen),
            _ => self.region.granule(piece.granule),
        };
        let (mut at, mut left) = (seen, piece.mask);
        while let Some(index) = at.filter(|_| left != 0) {
            let Some(history) = self.region.tracking.histories.get_mut(&piece.granule) else { break };
            let mask = history.get(index).mask;
            if mask & left != 0 {
                self.mark_observed(access.thread, piece, index);
                if self.is_morally_strong(access, piece, index) {
                    let releases = self.carried(piece, index);
                    self.causality.observe(access, &releases);
                }
            }
            left &= !mask;
            at = index.checked_sub(1);
        }
        value
    }

    fn mark_observed(&mut self, thread: Thread, piece: &Piece, at: usize) {
        let view = self.causality.view(thread);
        if let Some(history) = self.region.tracking.histories.get_mut(&piece.granule) {
            history.get_mut(at).observed(piece.mask, &view);
        }
    }

    fn carried(&self, piece: &Piece, at: usize) -> Vec<Release> {
        self.history(piece).map_or_else(Vec::new, |history| history.get(at).releases.clone())
    }

    /// Whether an access and the store `at` are both strong, speak to each other and overlap completely.
    fn is_morally_strong(&self, access: &Access, piece: &Piece, at: usize) -> bool {
        let Some(message) = self.history(piece).map(|history| history.get(at)) else { return false };
        let (ours, theirs) = (access.thread.block, message.by.block);
        message.mask == piece.mask
            && message.scope.is_some_and(|scope| self.causality.includes(scope, theirs, ours))
            && strength(access).is_some_and(|scope| self.causality.includes(scope, ours, theirs))
    }

    /// What a store carries: its own release, that of release fences before it, and that of an earlier release
    /// store by the same thread.
    fn releases(&mut self, access: &Access, piece: &Piece) -> Vec<Release> {
        if strength(access).is_none() {
            return Vec::new();
        }
        let mut releases = self.causality.releases(access);
        if let Some(at) = self.newest(piece)
            && self
                .history(piece)
                .is_some_and(|it| it.get(at).by == access.thread && it.get(at).mask == piece.mask)
        {
            for release in &self.carried(piece, at) {
                self.causality.merge_release(&mut releases, release);
            }
        }
        releases
    }

    fn write(&mut self, access: &Access, piece: &Piece, value: u64, releases: Vec<Release>, atomic: bool) {
        let view = self.causality.view(access.thread);
        let mut message = Message::new(piece.mask, value, access.thread, view.clock);
        (message.scope, message.releases, message.atomic) = (strength(access), releases, atomic);
        let histories = &mut self.region.tracking.histories;
        let Some(weak) = self.weak else {
            // Only the last store of each byte can be read, and a plain one carries nothing.
            if message.scope.is_some() {
                let history = histories.entry(piece.granule).or_default();
                history.hide(piece.mask);
                history.push(message);
            } else if let Some(history) = histories.get_mut(&piece.granule) {
                history.hide(piece.mask);
            }
            self.region.store_masked(piece.granule, piece.mask, value);
            return;
        };
        message.visible_at = weak.schedule(piece.region, piece.granule);
        let base = self.region.granule(piece.granule);
        let history =
            self.region.tracking.histories.entry(piece.granule).or_insert_with(|| History::new(base));
        let places = history.insertable(piece.mask, &view);
        let end = history.len();
        history.insert(if atomic { end } else { weak.choose(&places, end) }, message);
        let value = history.last_value();
        self.region.store_masked(piece.granule, piece.mask, value);
    }
}

/// The scope of a strong access.
fn strength(access: &Access) -> Option<Scope> {
    access.order.is_strong().then_some(access.scope)
}

/// `count` ≤ 8 low bits.
fn ones(count: usize) -> u8 {
    (0xff_u16 >> (8 - count)) as u8
}
