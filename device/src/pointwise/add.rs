//! Adding one tensor into another.

use crate::nvrar::element::{Bf16, Element};
use crate::nvrar::tensor;
use crate::params::Add;
use crate::ptx::pdl;
use crate::ptx::special::{ctaid_x, ntid_x, tid_x};

kernel! {
    /// `out += x`, rounded once.
    ///
    /// # Shape and layout
    /// `n` elements, any number.
    ///
    /// # Thread mapping
    /// A thread for 8 elements.
    ///
    /// # Safety
    /// The grid covers `n`; the tensors exist and do not overlap.
    #[launch_bounds(256, 1)]
    pub fn add_bf16(p: Add) {
        pdl::launch_dependents();
        pdl::wait();
        let unit = ctaid_x() * ntid_x() + tid_x();
        if unit < tensor::units(p.n) {
            let (x, out) = (tensor::load(p.x, unit, p.n), tensor::load(p.out, unit, p.n));
            let sum = Bf16::add(Bf16::widen(out), Bf16::widen(x));
            tensor::store(p.out, unit, p.n, Bf16::narrow(sum));
        }
    }
}
