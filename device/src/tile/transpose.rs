//! Four words of each lane of a quad, transposed.

use crate::ptx::shuffle::xor;
use crate::ptx::special::lane;

/// Word i of lane t of a quad becomes word t of lane i.
#[inline(always)]
pub fn quad(mut x: [u32; 4]) -> [u32; 4] {
    // What lies off the diagonal changes places: single words of neighbours, then pairs.
    let odd = lane() % 2 == 1;
    for i in [0, 2] {
        let other = xor::<1>(if odd { x[i] } else { x[i + 1] });
        if odd {
            x[i] = other;
        } else {
            x[i + 1] = other;
        }
    }
    let upper = lane() % 4 >= 2;
    for i in [0, 1] {
        let other = xor::<2>(if upper { x[i] } else { x[i + 2] });
        if upper {
            x[i] = other;
        } else {
            x[i + 2] = other;
        }
    }
    x
}
