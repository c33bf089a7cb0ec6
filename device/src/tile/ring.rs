//! A ring of stages in shared memory, between warps that fill them and warps that use them.

use core::marker::PhantomData;

use crate::ptx::barrier::fence_proxy_async;
use crate::ptx::special::{lane, opaque};
use crate::ptx::{Shared, async_copy, mbarrier};

/// Most stages of a ring.
const MAX_STAGES: u32 = 16;
/// Bytes of a ring's barriers.
pub const BARRIER_BYTES: u32 = 2 * MAX_STAGES * 8;

/// Where a ring's barriers are: two `mbarrier` a stage, first all that tell that a stage is full, then all that tell
/// that it is empty.
pub trait Barriers {
    /// The first of them, 8-byte aligned, with [`BARRIER_BYTES`].
    fn barriers() -> Shared;
}

/// A place in the ring: its stage, and the parity of the phase that the barriers of the stage are in.
pub struct Place<B, const STAGES: u32> {
    /// Below `STAGES`.
    pub stage: u32,
    /// Of the phase in which the stage is filled and used; the empty barrier's other parity stands for "not used yet".
    pub parity: u32,
    barriers: PhantomData<B>,
}

impl<B: Barriers, const STAGES: u32> Place<B, STAGES> {
    /// Where both sides begin.
    pub const FIRST: Self = Self::first(0);

    /// The first use of a stage.
    #[inline(always)]
    pub const fn first(stage: u32) -> Self {
        Self { stage, parity: 0, barriers: PhantomData }
    }

    /// Makes the barriers, in one thread: `fills` arrivals fill a stage, `uses` empty it.
    ///
    /// # Safety
    /// Nobody uses them before a barrier of the block behind this.
    #[inline(always)]
    pub unsafe fn init(fills: u32, uses: u32) {
        const { assert!(STAGES >= 2 && STAGES <= MAX_STAGES) };
        for stage in 0..opaque(STAGES) {
            let place = Self::first(stage);
            mbarrier::init(place.full(), fills);
            mbarrier::init(place.empty(), uses);
        }
    }

    /// On to the next stage.
    #[inline(always)]
    pub fn advance(&mut self) {
        self.stage += 1;
        if self.stage == STAGES {
            self.stage = 0;
            self.parity ^= 1;
        }
    }

    /// The barrier at which who fills arrives.
    #[inline(always)]
    pub fn full(&self) -> Shared {
        B::barriers() + self.stage * 8
    }

    /// The barrier at which who uses arrives.
    #[inline(always)]
    pub fn empty(&self) -> Shared {
        B::barriers() + (MAX_STAGES + self.stage) * 8
    }

    /// Gives the stage back, as one arrival of a whole warp, which has waited for all that reads the stage.
    ///
    /// # Safety
    /// The barriers are made, and this is one of the uses that empty the stage.
    #[inline(always)]
    pub unsafe fn give_back(&self) {
        if lane() == 0 {
            mbarrier::arrive(self.empty());
        }
    }
}

/// What a thread that fills stages by `cp.async` has to tell: the barrier of the last stage it has issued, once the copies
/// have arrived.
///
/// That is a copy later, or before it has to wait. `cp.async.mbarrier.arrive.noinc` would tell by itself, but
/// compute-sanitizer's racecheck does not follow it.
pub struct Landing {
    is_due: bool,
    full: Shared,
}

impl Landing {
    /// Nothing is in flight.
    pub const NONE: Self = Self { is_due: false, full: 0 };

    /// Waits until the stage is empty, which it is before its first use.
    ///
    /// # Safety
    /// `place` is of a ring whose other side gives stages back.
    #[inline(always)]
    pub unsafe fn make_room<B: Barriers, const STAGES: u32>(&mut self, place: &Place<B, STAGES>) {
        let (empty, used) = (place.empty(), place.parity ^ 1);
        if !mbarrier::has_ended(empty, used) {
            // It may be emptied by who waits for what this thread has in flight.
            self.tell::<0>();
            mbarrier::wait(empty, used);
        }
    }

    /// The copies of a stage have been issued, of which `full` is to be told.
    ///
    /// # Safety
    /// `full` takes an arrival of this thread for them.
    #[inline(always)]
    pub unsafe fn issued(&mut self, full: Shared) {
        async_copy::commit();
        self.tell::<1>();
        (self.is_due, self.full) = (true, full);
    }

    /// Nothing more comes; nobody leaves with copies in flight.
    ///
    /// # Safety
    /// As for [`issued`](Self::issued).
    #[inline(always)]
    pub unsafe fn end(mut self) {
        self.tell::<0>();
    }

    /// Tells of the stage whose copies are all but the last `BEHIND` in flight.
    #[inline(always)]
    unsafe fn tell<const BEHIND: usize>(&mut self) {
        if self.is_due {
            async_copy::wait::<BEHIND>();
            fence_proxy_async();
            mbarrier::arrive(self.full);
            self.is_due = false;
        }
    }
}
