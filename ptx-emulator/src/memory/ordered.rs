//! Accesses when it matters who made them: races and weak memory.

use super::granule::{Parts, Piece, strength};
use super::history::expand;
use super::shadow::{Conflict, Record, Shadow};
use super::space::{Place, RegionId};
use super::weak::Weak;
use super::{Access, AccessKind, Fault, FaultyAccess, Memory, RacingAccess, Result, Thread, Width};

impl Memory {
    fn parts(&mut self, region: RegionId) -> Parts<'_> {
        let region = match region {
            RegionId::Global(index) => self.space.region_mut(index),
            RegionId::Shared(block) => &mut self.blocks.get_mut(block).shared,
        };
        Parts { region, causality: &mut self.causality, weak: &mut self.weak, race: self.options.race }
    }

    pub(super) fn load_ordered(&mut self, access: &Access, place: Place, mask: u8) -> Result<u64> {
        let piece = Piece::new(place, mask);
        let race = self.parts(piece.region).check_race(access, &piece, AccessKind::Load, false);
        race.map_err(|first| self.race(first, access, &piece, AccessKind::Load))?;
        let seen = self.parts(piece.region).choose(access, &piece);
        self.check_seen(access, &piece, seen, AccessKind::Load)?;
        let mut parts = self.parts(piece.region);
        Ok((parts.read(access, &piece, seen) & expand(piece.mask)) >> (8 * piece.start))
    }

    /// An error if a read of an old state shows bytes that nobody had written then.
    fn check_seen(
        &mut self,
        access: &Access,
        piece: &Piece,
        seen: Option<usize>,
        kind: AccessKind,
    ) -> Result<()> {
        let missing = self.parts(piece.region).unwritten(piece, seen);
        if missing == 0 || !self.options.check_initialised {
            return Ok(());
        }
        let Access { thread, site, .. } = *access;
        let (allocation, at) = (self.allocation(piece.region), piece.granule as u64 * 8);
        let address = allocation.address + at + u64::from(piece.start);
        let access = FaultyAccess { kind, thread, site, address, bytes: u64::from(piece.mask.count_ones()) };
        let offset = at as i64 + i64::from(missing.trailing_zeros());
        Err(Box::new(Fault::Uninitialised { access, allocation, offset }))
    }

    pub(super) fn store_ordered(
        &mut self,
        access: &Access,
        place: Place,
        mask: u8,
        value: u64,
    ) -> Result<()> {
        let piece = Piece::new(place, mask);
        let value = value << (8 * piece.start);
        let mut parts = self.parts(piece.region);
        let unchanged = (parts.region.granule(piece.granule) ^ value) & expand(piece.mask) == 0;
        let race = parts.check_race(access, &piece, AccessKind::Store, unchanged);
        race.map_err(|first| self.race(first, access, &piece, AccessKind::Store))?;
        self.changes += u64::from(!unchanged);
        self.parts(piece.region).write(access, &piece, value, Vec::new(), false);
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
        // Only strong accesses that speak to each other observe (PTX ISA, "Observation Order").
        if let Some(at) = newest.filter(|_| whole) {
            parts.mark_observed(access.thread, &piece, at);
        }
        let race = parts.check_race(access, &piece, AccessKind::Atomic, false);
        race.map_err(|first| self.race(first, access, &piece, AccessKind::Atomic))?;
        self.check_seen(access, &piece, seen, AccessKind::Atomic)?;
        let mut parts = self.parts(piece.region);
        let mut carried = match seen {
            Some(at) if parts.is_morally_strong(access, &piece, at) => parts.carried(&piece, at),
            _ => Vec::new(),
        };
        carried.retain(|release| !parts.causality.takes_over(access, release));
        let old = (parts.read(access, &piece, seen) & expand(piece.mask)) >> (8 * piece.start);
        if let Some(new) = update(old) {
            parts.write(access, &piece, new << (8 * piece.start), carried, whole);
            self.changes += u64::from(new != old);
        }
        Ok(old)
    }

    /// Checks and remembers the plain accesses of a range by one agent, a page at a time where it can.
    pub(super) fn range_ordered(
        &mut self,
        access: &Access,
        place: Place,
        bytes: usize,
        kind: AccessKind,
    ) -> Result<()> {
        if !self.options.race {
            return Ok(());
        }
        let mut at = place.offset;
        let end = place.offset + bytes;
        while at < end {
            let whole_page = at.is_multiple_of(8 * Shadow::PAGE) && end - at >= 8 * Shadow::PAGE;
            let length = if whole_page { 8 * Shadow::PAGE } else { (8 - at % 8).min(end - at) };
            let piece =
                Piece::new(Place { offset: at, ..place }, if whole_page { 0xff } else { ones(length) });
            let mut parts = self.parts(piece.region);
            let race = if whole_page {
                parts.check_race_of_page(access, &piece, kind)
            } else {
                parts.check_race(access, &piece, kind, false).map_err(|first| (first, piece.granule))
            };
            if let Err((first, granule)) = race {
                return Err(self.race(first, access, &Piece { granule, ..piece }, kind));
            }
            at += length;
        }
        Ok(())
    }

    /// Whether a range that `agent` accesses is to be taken granule by granule: the data of asynchronous copies and
    /// messages is as late, and as stale, as anybody's.
    pub(super) fn is_piecewise(&self, agent: Thread) -> bool {
        self.weak.is_some() && (agent.async_copy().is_some() || agent.is_message())
    }

    pub(super) fn read_piecewise(&mut self, access: &Access, place: Place, out: &mut [u8]) -> Result<()> {
        let mut at = place.offset;
        let (head, body) = out.split_at_mut(out.len().min(at.next_multiple_of(8) - at));
        for piece in std::iter::once(head).chain(body.chunks_mut(8)).filter(|piece| !piece.is_empty()) {
            let value = self.load_ordered(access, Place { offset: at, ..place }, ones(piece.len()))?;
            piece.copy_from_slice(&value.to_le_bytes()[..piece.len()]);
            at += piece.len();
        }
        Ok(())
    }

    pub(super) fn write_piecewise(&mut self, access: &Access, place: Place, bytes: &[u8]) -> Result<()> {
        let mut at = place.offset;
        let (head, body) = bytes.split_at(bytes.len().min(at.next_multiple_of(8) - at));
        for piece in std::iter::once(head).chain(body.chunks(8)).filter(|piece| !piece.is_empty()) {
            let mut value = [0; 8];
            value[..piece.len()].copy_from_slice(piece);
            let value = u64::from_le_bytes(value);
            self.store_ordered(access, Place { offset: at, ..place }, ones(piece.len()), value)?;
            at += piece.len();
        }
        Ok(())
    }

    /// Everybody sees a range that has been written at once, and nothing older.
    pub(super) fn settle_range(&mut self, place: Place, bytes: usize) {
        let region = self.region_mut(place.region);
        if region.tracking().is_none_or(|tracking| tracking.histories.is_empty()) {
            return;
        }
        let mut histories = std::mem::take(&mut region.tracking_mut().histories);
        let end = place.offset + bytes;
        histories.retain(|&granule, history| {
            let first = place.offset.clamp(granule * 8, granule * 8 + 8);
            let last = end.clamp(granule * 8, granule * 8 + 8);
            if first < last {
                history.overwrite(ones(last - first) << (first % 8), region.granule(granule));
            }
            !history.is_empty()
        });
        region.tracking_mut().histories = histories;
    }

    /// Time passes: stores become visible to everybody.
    pub(super) fn settle_due(&mut self) {
        while let Some((region, granule, now)) = self.weak.as_mut().and_then(Weak::next_due) {
            let histories = &mut self.region_mut(region).tracking_mut().histories;
            if let Some(history) = histories.get_mut(&granule) {
                history.settle(now);
                if history.is_empty() {
                    histories.remove(&granule);
                }
            }
        }
    }

    #[cold]
    fn race(&self, conflict: Conflict, access: &Access, piece: &Piece, kind: AccessKind) -> Box<Fault> {
        let Access { thread, site, .. } = *access;
        let second = RacingAccess { kind, thread, site, scope: strength(access) };
        let Conflict { first, lacks_proxy_fence } = conflict;
        let common = first.mask() & piece.mask;
        let offset = piece.granule as i64 * 8 + i64::from(common.trailing_zeros());
        let Record { kind, site, scope, .. } = first;
        let first = RacingAccess { kind, thread: first.thread(), site, scope };
        let allocation = self.allocation(piece.region);
        Box::new(match lacks_proxy_fence {
            true => Fault::Proxy { first, second, allocation, offset },
            false => Fault::Race { first, second, allocation, offset },
        })
    }
}

/// `count` ≤ 8 low bits.
fn ones(count: usize) -> u8 {
    (0xff_u16 >> (8 - count)) as u8
}
