//! One granule at a time: the steps that accesses are made of.

use super::causality::{Causality, Release};
use super::history::{History, Message};
use super::region::Region;
use super::shadow::{Conflict, Context, Record, Shadow};
use super::space::{Place, RegionId};
use super::tracking::Tracking;
use super::weak::Weak;
use super::{Access, AccessKind, Scope, Thread};

/// An access to bytes of one granule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub(super) region: RegionId,
    pub(super) granule: usize,
    /// The first byte within the granule.
    pub(super) start: u32,
    /// One bit per byte.
    pub(super) mask: u8,
}

impl Piece {
    pub(super) fn new(place: Place, mask: u8) -> Self {
        let start = (place.offset % 8) as u32;
        Self { region: place.region, granule: place.offset / 8, start, mask: mask << start }
    }
}

/// A region, and what decides about accesses to it.
pub(super) struct Parts<'a> {
    pub(super) region: &'a mut Region,
    pub(super) causality: &'a mut Causality,
    pub(super) weak: &'a mut Option<Weak>,
    pub(super) race: bool,
}

impl Parts<'_> {
    /// An error is the earlier access that this one races with. `unchanged` is said of a store that leaves the
    /// bytes as they are.
    pub(super) fn check_race(
        &mut self,
        access: &Access,
        piece: &Piece,
        kind: AccessKind,
        unchanged: bool,
    ) -> std::result::Result<(), Conflict> {
        if !self.race {
            return Ok(());
        }
        let view = self.causality.view(access.thread);
        let new = Record::new(&view, access.site, piece.mask, kind, strength(access));
        let Tracking { shadow, histories } = self.region.tracking_mut();
        let (causality, granule) = (&*self.causality, piece.granule);
        let has_proxies = matches!(piece.region, RegionId::Shared(_));
        shadow.access(&new, &view, &Context { causality, histories, granule, has_proxies, unchanged })
    }

    /// The same for a plain access to a whole page, from `piece` on. An error names the granule as well.
    pub(super) fn check_race_of_page(
        &mut self,
        access: &Access,
        piece: &Piece,
        kind: AccessKind,
    ) -> std::result::Result<(), (Conflict, usize)> {
        let view = self.causality.view(access.thread);
        let new = Record::new(&view, access.site, 0xff, kind, None);
        let Tracking { shadow, histories } = self.region.tracking_mut();
        let (causality, granule) = (&*self.causality, piece.granule);
        let has_proxies = matches!(piece.region, RegionId::Shared(_));
        let mut context = Context { causality, histories, granule, has_proxies, unchanged: false };
        let race = shadow.access_page(granule / Shadow::PAGE, &new, &view, &mut context);
        race.map_err(|first| (first, context.granule))
    }

    fn history(&self, piece: &Piece) -> Option<&History> {
        self.region.tracking()?.histories.get(&piece.granule)
    }

    pub(super) fn newest(&self, piece: &Piece) -> Option<usize> {
        self.history(piece)?.newest(piece.mask)
    }

    /// The bytes of `piece` that nobody had written in a state of the granule.
    pub(super) fn unwritten(&self, piece: &Piece, seen: Option<usize>) -> u8 {
        match self.history(piece) {
            Some(history) if seen != history.newest(piece.mask) => piece.mask & !history.written(seen),
            // The newest bytes have been looked at.
            _ => 0,
        }
    }

    /// The state of the granule that a load sees: as of a message, or before all.
    pub(super) fn choose(&mut self, access: &Access, piece: &Piece) -> Option<usize> {
        let newest = self.newest(piece)?;
        let Some(weak) = self.weak else { return Some(newest) };
        let view = self.causality.view(access.thread);
        let history = self.region.tracking()?.histories.get(&piece.granule)?;
        weak.choose(Some(newest), &history.older(piece.mask, &view))
    }

    /// Reads the granule as of `seen`, and takes what the stores read carry.
    pub(super) fn read(&mut self, access: &Access, piece: &Piece, seen: Option<usize>) -> u64 {
        let newest = self.newest(piece);
        let value = match self.history(piece) {
            // The bytes themselves are always the newest.
            Some(history) if seen != newest => history.value(seen),
            _ => self.region.granule(piece.granule),
        };
        let (mut at, mut left) = (seen, piece.mask);
        while let Some(index) = at.filter(|_| left != 0) {
            let Some(history) = self.region.tracking_mut().histories.get_mut(&piece.granule) else { break };
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

    pub(super) fn mark_observed(&mut self, thread: Thread, piece: &Piece, at: usize) {
        let view = self.causality.view(thread);
        if let Some(history) = self.region.tracking_mut().histories.get_mut(&piece.granule) {
            history.get_mut(at).observed(piece.mask, &view);
        }
    }

    pub(super) fn carried(&self, piece: &Piece, at: usize) -> Vec<Release> {
        self.history(piece).map_or_else(Vec::new, |history| history.get(at).releases.clone())
    }

    /// Whether an access and the store `at` are both strong, speak to each other and overlap completely.
    pub(super) fn is_morally_strong(&self, access: &Access, piece: &Piece, at: usize) -> bool {
        let Some(message) = self.history(piece).map(|history| history.get(at)) else { return false };
        let (ours, theirs) = (access.thread.block, message.by.block);
        overlap_completely((piece.mask, access.thread), (message.mask, message.by))
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

    /// Stores the bytes. An atomic read-modify-write is `whole` if it read the newest store, and hands on what
    /// that one `carried`.
    pub(super) fn write(
        &mut self,
        access: &Access,
        piece: &Piece,
        value: u64,
        carried: Vec<Release>,
        whole: bool,
    ) {
        // A release store belongs to what it releases, as the race check has it.
        let clock = self.causality.view(access.thread).clock;
        let mut releases = carried;
        for release in &self.releases(access, piece) {
            self.causality.merge_release(&mut releases, release);
        }
        let mut message = Message::new(piece.mask, value, access.thread, clock);
        (message.scope, message.releases, message.atomic) = (strength(access), releases, whole);
        let Some(weak) = self.weak else {
            let histories = &mut self.region.tracking_mut().histories;
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
        let written = self.region.initialised_mask(piece.granule);
        let histories = &mut self.region.tracking_mut().histories;
        let history = histories.entry(piece.granule).or_insert_with(|| History::new(base, written));
        let view = self.causality.view(access.thread);
        let end = history.len();
        let places = if whole { Vec::new() } else { history.insertable(piece.mask, &view) };
        let at = weak.choose(end, &places);
        history.insert(at, message);
        let value = if at == end { value } else { history.last_value() };
        self.region.store_masked(piece.granule, piece.mask, value);
    }
}

/// Whether two strong accesses, by what they touch and by whom, overlap completely (PTX ISA, "Morally Strong
/// Operations"). A unit of a message arrives as a whole: it does so with an access to any part of it.
#[inline]
pub(super) fn overlap_completely((mask, who): (u8, Thread), (other, whose): (u8, Thread)) -> bool {
    mask == other || whose.is_message() && mask & !other == 0 || who.is_message() && other & !mask == 0
}

/// The scope of a strong access.
pub(super) fn strength(access: &Access) -> Option<Scope> {
    access.order.is_strong().then_some(access.scope)
}
