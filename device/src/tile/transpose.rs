//! Four words of each lane of a quad, transposed.

use crate::ptx::shuffle::xor;
use crate::ptx::special::lane;

/// Word i of lane t of a quad becomes word t of lane i.
#[inline(always)]
pub fn quad([a, b, c, d]: [u32; 4]) -> [u32; 4] {
    // What lies off the diagonal changes places: single words of neighbours, then pairs.
    let odd = lane() % 2 == 1;
    let ([a, b], [c, d]) = (exchange::<1>(odd, [a, b]), exchange::<1>(odd, [c, d]));
    let upper = lane() % 4 >= 2;
    let ([a, c], [b, d]) = (exchange::<2>(upper, [a, c]), exchange::<2>(upper, [b, d]));
    [a, b, c, d]
}

/// The second word of a lane changes places with the first word of its upper partner.
#[inline(always)]
fn exchange<const APART: u32>(is_upper: bool, [first, second]: [u32; 2]) -> [u32; 2] {
    let other = xor::<APART>(if is_upper { first } else { second });
    if is_upper { [other, second] } else { [first, other] }
}
