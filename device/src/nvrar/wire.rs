//! How a unit of 16 bytes travels: formats in which data says by itself that it has arrived.
//!
//! Places are cleared by who reads them, so a place holds either nothing or a message that its reader
//! has not taken; no flag outlives its call, whatever the sequence number wraps to.

use crate::params::UNIT_BYTES;
use crate::ptx::Global;
use crate::ptx::system::{ld_v2_b64, ld_v4_b32, st_v2_b64, st_v4_b32};

/// A wire format. Stores and loads are relaxed, of system scope, 16 bytes each.
pub trait Wire {
    /// Where unit `index` lies in its slot, in bytes.
    fn offset(index: u32) -> u64;
    /// Writes a unit to an empty place.
    unsafe fn send(place: Global, unit: [u32; 4], flag: u32);
    /// The unit at a place, and whether it is all there.
    unsafe fn look(place: Global, flag: u32) -> ([u32; 4], bool);
    /// The flag that is there, 0 if the format has none or nothing came.
    unsafe fn seen(place: Global) -> u32;
    /// Empties a place that was read.
    unsafe fn clear(place: Global);
}

/// 8-byte cells of 4 bytes of data and 4 of flag, the call's number; an empty cell has flag 0.
///
/// A cell is one 64-bit access, so flag and data arrive together. That they also do so over a network
/// card is an assumption that PTX does not cover; here they cross NVLink, PCIe or nothing.
pub struct Cells;

/// Two units of cells lie in two accesses, 512 bytes apart, so that each access of a warp is contiguous.
const CELL_ROW_BYTES: u64 = 512;

impl Wire for Cells {
    #[inline(always)]
    fn offset(index: u32) -> u64 {
        u64::from(index / 32) * (2 * CELL_ROW_BYTES) + u64::from(index % 32) * 16
    }

    #[inline(always)]
    unsafe fn send(place: Global, [a, b, c, d]: [u32; 4], flag: u32) {
        let cell = |data: u32| u64::from(flag) << 32 | u64::from(data);
        st_v2_b64(place, [cell(a), cell(b)]);
        st_v2_b64(place + CELL_ROW_BYTES, [cell(c), cell(d)]);
    }

    #[inline(always)]
    unsafe fn look(place: Global, flag: u32) -> ([u32; 4], bool) {
        let ([a, b], [c, d]) = (ld_v2_b64(place), ld_v2_b64(place + CELL_ROW_BYTES));
        let arrived = [a, b, c, d].map(|cell| (cell >> 32) as u32 == flag);
        ([a as u32, b as u32, c as u32, d as u32], arrived[0] & arrived[1] & arrived[2] & arrived[3])
    }

    #[inline(always)]
    unsafe fn seen(place: Global) -> u32 {
        (ld_v2_b64(place)[0] >> 32) as u32
    }

    #[inline(always)]
    unsafe fn clear(place: Global) {
        st_v2_b64(place, [0; 2]);
        st_v2_b64(place + CELL_ROW_BYTES, [0; 2]);
    }
}

/// Words of which one value means that nothing came: all bits set, which data never has.
///
/// In f32, and in pairs of f16 or bf16, that value is a NaN (two); [`Wire::send`] replaces it by a
/// neighbouring NaN. Every 4-byte word is looked at, so PTX's 4-byte atomicity is all that is needed.
pub struct Words;

const EMPTY: u32 = u32::MAX;

impl Wire for Words {
    #[inline(always)]
    fn offset(index: u32) -> u64 {
        u64::from(index) * UNIT_BYTES
    }

    #[inline(always)]
    unsafe fn send(place: Global, unit: [u32; 4], _flag: u32) {
        st_v4_b32(place, unit.map(|word| word.min(EMPTY - 1)));
    }

    #[inline(always)]
    unsafe fn look(place: Global, _flag: u32) -> ([u32; 4], bool) {
        let [a, b, c, d] = ld_v4_b32(place);
        ([a, b, c, d], a.max(b).max(c.max(d)) != EMPTY)
    }

    #[inline(always)]
    unsafe fn seen(_place: Global) -> u32 {
        0
    }

    #[inline(always)]
    unsafe fn clear(place: Global) {
        st_v4_b32(place, [EMPTY; 4]);
    }
}
