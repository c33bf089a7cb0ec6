//! NVSHMEM's device functions over an emulated network, as a [`Library`].
//!
//! Every PE has a symmetric heap of one size, somewhere on its device. A put is a *message*
//! ([`Memory::begin_message`]): its source is read piece by piece whenever the network likes, from the call on until all
//! of it has been delivered, and its destination is written in aligned units of 8 bytes, in any order, between those of
//! other puts. Nothing but `nvshmem_fence` and `nvshmem_quiet` orders it. So who relies on more finds out: a source that
//! is changed before its put has been delivered is a race, or what arrives is wrong; and what arrives in one order with
//! one seed arrives in another with the next.
//!
//! NVSHMEM promises nothing about units. That 8 bytes arrive whole is what protocols assume that send a flag beside the
//! data; with [`Unit::B4`] they do not.
//!
//! Provided are `nvshmem_my_pe`, `nvshmem_n_pes`, `nvshmem_ptr` (which finds no path to another PE),
//! `nvshmem_putmem_nbi`, `nvshmemx_putmem_nbi_warp`, `nvshmem_fence` and `nvshmem_quiet`. A put of a warp is one of its
//! first lane.

use std::collections::HashMap;

use crate::exec::Cause;
use crate::external::{Call, Callers, Function, Late, Library};
use crate::memory::{Clock, DeviceId, Memory, Site, Thread, Width};

/// How much of a put arrives whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unit {
    /// Aligned words of 4 bytes.
    B4,
    /// Aligned cells of 8 bytes.
    #[default]
    B8,
}

impl Unit {
    const fn bytes(self) -> u64 {
        match self {
            Self::B4 => 4,
            Self::B8 => 8,
        }
    }
}

/// The symmetric memory of one PE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heap {
    /// Where the PE runs: no other PE does.
    pub device: DeviceId,
    /// The heap's first address: an allocation of the device, aligned to 8 bytes.
    pub address: u64,
}

/// The PEs of a machine, and the puts that are under way between them.
#[derive(Debug)]
pub struct Nvshmem {
    heaps: Vec<Heap>,
    heap_bytes: u64,
    unit: Unit,
    puts: Vec<Put>,
    /// Fences of each thread so far.
    fences: HashMap<Thread, u64>,
    /// The end of what each thread has put to each PE and has been delivered.
    ended: HashMap<(Thread, usize), Clock>,
}

/// A put of which something is still to be delivered.
#[derive(Debug)]
struct Put {
    message: Thread,
    caller: Thread,
    site: Site,
    pe: usize,
    from: u64,
    to: u64,
    /// Offsets and sizes of what is left.
    left: Vec<(u64, Width)>,
    /// Fences of the caller before it; those behind the last have to be heeded yet.
    fences: u64,
    is_ordered: bool,
}

const PUT: &[u32] = &[8, 8, 8, 4];

const FUNCTIONS: [Function; 7] = [
    Function { name: "nvshmem_my_pe", callers: Callers::Thread, parameters: &[], result: Some(4) },
    Function { name: "nvshmem_n_pes", callers: Callers::Thread, parameters: &[], result: Some(4) },
    Function { name: "nvshmem_ptr", callers: Callers::Thread, parameters: &[8, 4], result: Some(8) },
    Function { name: "nvshmem_putmem_nbi", callers: Callers::Thread, parameters: PUT, result: None },
    Function { name: "nvshmemx_putmem_nbi_warp", callers: Callers::Warp, parameters: PUT, result: None },
    Function { name: "nvshmem_fence", callers: Callers::Thread, parameters: &[], result: None },
    Function { name: "nvshmem_quiet", callers: Callers::Thread, parameters: &[], result: None },
];

impl Nvshmem {
    /// PE i has `heaps[i]`, all of `heap_bytes`.
    pub fn new(heaps: Vec<Heap>, heap_bytes: u64, unit: Unit) -> Self {
        let (puts, fences, ended) = (Vec::new(), HashMap::new(), HashMap::new());
        Self { heaps, heap_bytes, unit, puts, fences, ended }
    }

    fn pe_of(&self, call: &Call<'_, '_>) -> Result<usize, Cause> {
        let device = call.device();
        let pe = self.heaps.iter().position(|heap| heap.device == device);
        pe.ok_or_else(|| Cause::External(format!("NVSHMEM: device {} is no PE", device.0)))
    }

    /// Where `bytes` at a symmetric address of one PE lie in its heap.
    fn offset(&self, pe: usize, what: &str, address: u64, bytes: u64) -> Result<u64, Cause> {
        let heap = self.heaps[pe].address;
        let offset = address.wrapping_sub(heap);
        if bytes <= self.heap_bytes && offset <= self.heap_bytes - bytes {
            return Ok(offset);
        }
        Err(Cause::External(format!(
            "NVSHMEM: the {what}, {bytes} bytes at {address:#x}, does not lie in the symmetric heap of PE {pe}, \
             {size} bytes from {heap:#x} on",
            size = self.heap_bytes
        )))
    }

    fn target(&self, number: u64) -> Result<usize, Cause> {
        let pe = usize::try_from(number as u32).ok().filter(|pe| *pe < self.heaps.len());
        let pes = self.heaps.len();
        pe.ok_or_else(|| Cause::External(format!("NVSHMEM: PE {} is none of {pes}", number as i32)))
    }

    fn put(&mut self, call: &mut Call<'_, '_>) -> Result<(), Cause> {
        let (to, from, bytes) = (call.argument(0)?, call.argument(1)?, call.argument(2)?);
        let (own, pe) = (self.pe_of(call)?, self.target(call.argument(3)?)?);
        self.offset(own, "source", from, bytes)?;
        let to = self.heaps[pe].address + self.offset(own, "destination", to, bytes)?;
        let (caller, site) = (call.caller(), call.site());
        let left = pieces(to, bytes, self.unit.bytes());
        if !left.is_empty() {
            let message = call.memory().begin_message(caller);
            let fences = self.fences.get(&caller).copied().unwrap_or_default();
            self.puts.push(Put {
                message,
                caller,
                site,
                pe,
                from,
                to,
                left,
                fences,
                is_ordered: fences == 0,
            });
        }
        Ok(())
    }

    /// Everything that the caller has put is delivered.
    fn quiet(&mut self, call: &mut Call<'_, '_>) -> Result<(), Cause> {
        let caller = call.caller();
        while let Some(at) = self.puts.iter().position(|put| put.caller == caller) {
            self.deliver(at, 0, call.memory()).map_err(|late| late.cause)?;
        }
        for (_, ended) in self.ended.iter().filter(|((thread, _), _)| *thread == caller) {
            call.memory().acquire(caller, ended);
        }
        Ok(())
    }

    /// Delivers a unit: the `chance`-th of those left of a put, or of one that a fence puts before it.
    fn deliver(&mut self, at: usize, chance: u64, memory: &mut Memory) -> Result<(), Late> {
        let Put { caller, pe, .. } = self.puts[at];
        let same = |put: &Put| (put.caller, put.pe) == (caller, pe);
        let fences = self.puts.iter().filter(|put| same(put)).map(|put| put.fences).min().unwrap_or_default();
        let at = if self.puts[at].fences == fences {
            at
        } else {
            self.puts.iter().position(|put| same(put) && put.fences == fences).unwrap_or(at)
        };
        let put = &mut self.puts[at];
        if !put.is_ordered {
            put.is_ordered = true;
            if let Some(ended) = self.ended.get(&(caller, pe)) {
                memory.order_message(put.message, ended);
            }
        }
        let (offset, width) = put.left.swap_remove((chance % put.left.len() as u64) as usize);
        let &mut Put { message, site, from, to, .. } = put;
        let arrived = memory.forward(message, site, from + offset, to + offset, width);
        arrived.map_err(|fault| Late { cause: fault.into(), caller, site })?;
        if put.left.is_empty() {
            let end = memory.end_message(message);
            memory.join(self.ended.entry((caller, pe)).or_default(), &end);
            self.puts.swap_remove(at);
        }
        if self.puts.is_empty() {
            // Threads that are gone neither fence nor wait.
            self.ended.retain(|(thread, _), _| memory.is_running(thread.block));
            self.fences.retain(|thread, _| memory.is_running(thread.block));
        }
        Ok(())
    }
}

impl Library for Nvshmem {
    fn functions(&self) -> &'static [Function] {
        &FUNCTIONS
    }

    fn call(&mut self, function: usize, call: &mut Call<'_, '_>) -> Result<(), Cause> {
        match FUNCTIONS[function].name {
            "nvshmem_my_pe" => call.set_result(self.pe_of(call)? as u64),
            "nvshmem_n_pes" => call.set_result(self.heaps.len() as u64),
            "nvshmem_ptr" => {
                let (address, own) = (call.argument(0)?, self.pe_of(call)?);
                let is_own = self.target(call.argument(1)?)? == own;
                call.set_result(if is_own { address } else { 0 });
            }
            "nvshmem_fence" => *self.fences.entry(call.caller()).or_default() += 1,
            "nvshmem_quiet" => self.quiet(call)?,
            _ => self.put(call)?,
        }
        Ok(())
    }

    fn is_busy(&self) -> bool {
        !self.puts.is_empty()
    }

    fn work(&mut self, memory: &mut Memory, chance: u64) -> Result<(), Late> {
        match self.puts.len() as u64 {
            0 => Ok(()),
            puts => self.deliver((chance % puts) as usize, chance / puts, memory),
        }
    }
}

/// Offsets and sizes of the units of a range: as large as their alignment allows.
fn pieces(to: u64, bytes: u64, unit_bytes: u64) -> Vec<(u64, Width)> {
    let mut pieces = Vec::new();
    let mut offset = 0;
    while offset < bytes {
        let fits = |size: &u64| (to + offset).is_multiple_of(*size) && offset + size <= bytes;
        let size = [8, 4, 2, 1].into_iter().find(|size| *size <= unit_bytes && fits(size)).unwrap_or(1);
        pieces.extend(Width::from_bytes(size).map(|width| (offset, width)));
        offset += size;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn units_cover_a_range_once_each_aligned(to in 0_u64..64, bytes in 0_u64..200, wide: bool) {
            let unit = if wide { Unit::B8 } else { Unit::B4 };
            let mut next = 0;
            for (offset, width) in pieces(to, bytes, unit.bytes()) {
                prop_assert_eq!(offset, next);
                prop_assert!((to + offset).is_multiple_of(width.bytes()) && width.bytes() <= unit.bytes());
                // What could arrive whole does.
                let cell = (to + offset) / unit.bytes() * unit.bytes();
                let whole = cell >= to && cell + unit.bytes() <= to + bytes;
                prop_assert!(!whole || width.bytes() == unit.bytes());
                next += width.bytes();
            }
            prop_assert_eq!(next, bytes);
        }
    }
}
