//! Loads and stores of a whole warp: one look-up per warp where the lanes meet in one allocation.

use super::region::Region;
use super::space::{Place, Request};
use super::{AccessKind, Memory, Result, WarpAccess, Width};

/// One value, or one address, per lane.
pub type Row = [u64; 32];

impl Memory {
    /// Loads one value per lane of `access.mask`; other lanes of `out` keep what they have.
    ///
    /// # Errors
    /// The first lane's, as of [`Memory::load`].
    pub fn load_lanes(
        &mut self,
        access: &WarpAccess,
        addresses: &Row,
        width: Width,
        out: &mut Row,
    ) -> Result<()> {
        if self.load_together(access, addresses, width, out) {
            return Ok(());
        }
        for lane in lanes(access.mask) {
            out[lane] = self.load(&access.lane(lane as u32), addresses[lane], width)?;
        }
        Ok(())
    }

    /// Stores one value per lane of `access.mask`, lower lanes first.
    ///
    /// # Errors
    /// The first lane's, as of [`Memory::store`]; lower lanes have stored by then.
    pub fn store_lanes(
        &mut self,
        access: &WarpAccess,
        addresses: &Row,
        width: Width,
        values: &Row,
    ) -> Result<()> {
        if self.store_together(access, addresses, width, values) {
            return Ok(());
        }
        for lane in lanes(access.mask) {
            self.store(&access.lane(lane as u32), addresses[lane], width, values[lane])?;
        }
        Ok(())
    }
}

impl Memory {
    /// The place of the first lane, if lanes may be served together: nothing but the bytes matters.
    #[inline]
    fn first_place(
        &self,
        kind: AccessKind,
        access: &WarpAccess,
        addresses: &Row,
        width: Width,
    ) -> Option<Place> {
        if self.is_ordered() || access.mask == 0 {
            return None;
        }
        let lane = access.mask.trailing_zeros();
        let thread = access.lane(lane).thread;
        self.resolve(&Request::new(kind, thread, access.site, addresses[lane as usize], width)).ok()
    }

    /// Loads all lanes from the region of the first, or nothing if one of them has to be looked at alone.
    fn load_together(&self, access: &WarpAccess, addresses: &Row, width: Width, out: &mut Row) -> bool {
        let Some(place) = self.first_place(AccessKind::Load, access, addresses, width) else {
            return access.mask == 0;
        };
        let region = self.region(place.region);
        if access.mask == u32::MAX && is_run(addresses, width) {
            return region.load_run(place.offset, width, self.options.check_initialised, out);
        }
        let base = addresses[access.mask.trailing_zeros() as usize] - place.offset as u64;
        if !region.contains(base, access.mask, addresses, width) {
            return false;
        }
        for lane in lanes(access.mask) {
            let offset = (addresses[lane] - base) as usize;
            if self.options.check_initialised && !region.is_initialised(offset, width) {
                return false;
            }
            out[lane] = region.load(offset, width);
        }
        true
    }

    /// Stores all lanes to the region of the first, or nothing if one of them has to be looked at alone.
    fn store_together(&mut self, access: &WarpAccess, addresses: &Row, width: Width, values: &Row) -> bool {
        let Some(place) = self.first_place(AccessKind::Store, access, addresses, width) else {
            return access.mask == 0;
        };
        let region = self.region_mut(place.region);
        if access.mask == u32::MAX && is_run(addresses, width) {
            let stored = region.store_run(place.offset, width, values);
            self.changes += u64::from(stored == Some(true));
            return stored.is_some();
        }
        let base = addresses[access.mask.trailing_zeros() as usize] - place.offset as u64;
        if !region.contains(base, access.mask, addresses, width) {
            return false;
        }
        let mut changes = false;
        for lane in lanes(access.mask) {
            changes |= region.store((addresses[lane] - base) as usize, width, values[lane]);
        }
        self.changes += u64::from(changes);
        true
    }
}

impl Region {
    /// Whether all lanes lie in bounds and aligned, in this region of first address `base`.
    fn contains(&self, base: u64, mask: u32, addresses: &Row, width: Width) -> bool {
        let Some(last) = self.len().checked_sub(width.bytes()) else { return false };
        let mut wrong = 0u32;
        for (lane, &address) in addresses.iter().enumerate() {
            let bad = (address.wrapping_sub(base) > last) | (address & (width.bytes() - 1) != 0);
            wrong |= u32::from(bad) << lane;
        }
        wrong & mask == 0
    }

    /// Loads 32 values in a row from `offset` on.
    fn load_run(&self, offset: usize, width: Width, check_initialised: bool, out: &mut Row) -> bool {
        let bytes = 32 * width.bytes() as usize;
        if offset as u64 + bytes as u64 > self.len()
            || check_initialised && self.first_uninitialised(offset, bytes).is_some()
        {
            return false;
        }
        let run = self.bytes(offset, bytes);
        match width {
            Width::B1 => widen::<1>(run, out, |bytes| u64::from(u8::from_le_bytes(bytes))),
            Width::B2 => widen::<2>(run, out, |bytes| u64::from(u16::from_le_bytes(bytes))),
            Width::B4 => widen::<4>(run, out, |bytes| u64::from(u32::from_le_bytes(bytes))),
            Width::B8 => widen::<8>(run, out, u64::from_le_bytes),
        }
        true
    }

    /// Stores 32 values in a row from `offset` on, if they are in bounds; says whether there were others before.
    fn store_run(&mut self, offset: usize, width: Width, values: &Row) -> Option<bool> {
        let bytes = 32 * width.bytes() as usize;
        if offset as u64 + bytes as u64 > self.len() {
            return None;
        }
        let run = self.bytes_mut(offset, bytes);
        Some(match width {
            Width::B1 => narrow::<1>(run, values),
            Width::B2 => narrow::<2>(run, values),
            Width::B4 => narrow::<4>(run, values),
            Width::B8 => narrow::<8>(run, values),
        })
    }
}

fn widen<const N: usize>(run: &[u8], out: &mut Row, value: impl Fn([u8; N]) -> u64) {
    for (out, chunk) in out.iter_mut().zip(run.as_chunks::<N>().0) {
        *out = value(*chunk);
    }
}

/// True if any value was another before.
fn narrow<const N: usize>(run: &mut [u8], values: &Row) -> bool {
    let mut changes = false;
    for (chunk, value) in run.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        let old = *chunk;
        chunk.copy_from_slice(&value.to_le_bytes()[..N]);
        changes |= old != *chunk;
    }
    changes
}

/// Whether the addresses follow each other without gaps.
#[inline]
fn is_run(addresses: &Row, width: Width) -> bool {
    let mut wrong = 0;
    for (lane, &address) in addresses.iter().enumerate() {
        wrong |= address ^ addresses[0].wrapping_add(lane as u64 * width.bytes());
    }
    wrong == 0
}

/// The lanes of a mask, in order.
#[inline]
fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = mask.trailing_zeros();
        mask &= mask.wrapping_sub(1);
        (lane < 32).then_some(lane as usize)
    })
}
