//! Functions of the embedder's, called from PTX.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod common;

use std::sync::{Arc, Mutex};

use common::params;
use ptx_emulator::external::{Call, Callers, Function, Late, Library};
use ptx_emulator::memory::{Access, DeviceId, Memory, Order, Owner, Scope, Site, Thread, Width};
use ptx_emulator::{Cause, Launch, Machine, MachineOptions, Module, Policy, Report, RunError};

const POLICIES: [Policy; 3] = [Policy::RoundRobin, Policy::Random, Policy::Adversarial];

/// Calls of `ticket`: who, how many, and the number that they got.
type Log = Arc<Mutex<Vec<(u32, u64, u64)>>>;

/// `ticket` hands out numbers; `later` stores a word when the machine lets it work.
#[derive(Debug, Default)]
struct Office {
    log: Log,
    next: u64,
    orders: Vec<(Thread, Site, u64, u64)>,
    fails: bool,
}

impl Library for Office {
    fn functions(&self) -> &'static [Function] {
        &[
            Function { name: "ticket", callers: Callers::Thread, parameters: &[2, 1], result: Some(8) },
            Function { name: "later", callers: Callers::Warp, parameters: &[8, 4], result: Some(4) },
        ]
    }

    fn call(&mut self, function: usize, call: &mut Call<'_, '_>) -> Result<(), Cause> {
        let (first, second) = (call.argument(0)?, call.argument(1)?);
        if function == 0 {
            if second == 0 {
                return Err(Cause::External("no tickets of no size".to_owned()));
            }
            self.log.lock().unwrap().push((call.caller().index, first * second, self.next));
            call.set_result(self.next);
            self.next += first * second;
        } else {
            self.orders.push((call.caller(), call.site(), first, second));
            call.set_result(u64::from(call.device().0) + 5);
        }
        Ok(())
    }

    fn is_busy(&self) -> bool {
        !self.orders.is_empty()
    }

    fn work(&mut self, memory: &mut Memory, _: u64) -> Result<(), Late> {
        let Some((caller, site, address, value)) = self.orders.pop() else { return Ok(()) };
        if self.fails {
            return Err(Late { cause: Cause::External("out of paper".to_owned()), caller, site });
        }
        let access = Access { thread: Thread::HOST, site, order: Order::Relaxed, scope: Scope::Sys };
        let stored = memory.store(&access, address, Width::B4, value);
        stored.map_err(|fault| Late { cause: fault.into(), caller, site })
    }
}

const SOURCE: &str = ".version 8.0\n.target sm_80\n.address_size 64
.extern .func (.param .b64 r) ticket (.param .b16 n, .param .b8 size);
.extern .func (.param .b32 r) later (.param .b64 at, .param .b32 value);
.visible .entry k(.param .u64 out, .param .u64 flag, .param .u32 size) {
  .reg .b64 %out, %flag, %w<4>; .reg .b32 %r<8>, %tid; .reg .b16 %n, %s; .reg .pred %p<4>;
  .param .b16 n; .param .b8 size8; .param .b64 r64; .param .b64 at; .param .b32 value; .param .b32 r32;
  ld.param.u64 %out, [out]; ld.param.u64 %flag, [flag]; ld.param.u32 %r0, [size]; mov.u32 %tid, %tid.x;
  mul.wide.u32 %w0, %tid, 8; add.u64 %w0, %w0, %out;
  and.b32 %r1, %tid, 1; setp.eq.u32 %p0, %r1, 0; @%p0 bra OVER;
  cvt.u16.u32 %n, %tid; st.param.b16 [n], %n; cvt.u16.u32 %s, %r0; st.param.b8 [size8], %s;
  call.uni (r64), ticket, (n, size8);
  ld.param.b64 %w1, [r64]; st.global.u64 [%w0], %w1;
OVER:
  bar.sync 0;
  setp.ge.u32 %p1, %tid, 32; @%p1 bra END;
  st.param.b64 [at], %flag; st.param.b32 [value], 9;
  call.uni (r32), later, (at, value);
  ld.param.b32 %r2, [r32]; @%p0 st.global.u32 [%w0], %r2;
WAIT: ld.relaxed.sys.global.u32 %r3, [%flag]; setp.ne.u32 %p2, %r3, 9; @%p2 bra WAIT;
END: ret;
}";

/// The numbers that threads got, and the library's own list.
fn run(policy: Policy, size: u32, fails: bool) -> Result<(Vec<u64>, Log), RunError> {
    let module = Arc::new(Module::new("office.ptx", SOURCE).unwrap_or_else(|error| panic!("{error}")));
    let mut machine = Machine::new(MachineOptions { policy, seed: 3, ..MachineOptions::default() });
    let office = Office { fails, ..Office::default() };
    let log = Arc::clone(&office.log);
    machine.provide(Box::new(office));
    let loaded = machine.load(DeviceId(0), &module)?;
    let place = |memory: &mut Memory, bytes: u64| {
        let at = memory.allocate(Owner::Device(DeviceId(0)), bytes, "out").unwrap();
        memory.fill(Thread::HOST, at, bytes, &[0]).unwrap();
        at
    };
    let (out, flag) = (place(machine.memory(), 8 * 64), place(machine.memory(), 4));
    let stream = machine.stream(DeviceId(0));
    let kernel = machine.kernel(loaded, "k").unwrap();
    machine.launch(stream, &Launch::new(kernel, [1; 3], [64, 1, 1], params(&[out, flag], &[size]))).unwrap();
    machine.run()?;
    let mut bytes = [0; 8 * 64];
    machine.memory().read(Thread::HOST, out, &mut bytes).unwrap();
    Ok((bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect(), log))
}

#[test]
fn threads_call_for_themselves_and_warps_once() {
    for policy in POLICIES {
        let (found, log) = run(policy, 3, false).unwrap_or_else(|error| panic!("{error}"));
        let log = log.lock().unwrap();
        let mut next = 0;
        for &(thread, taken, number) in log.iter() {
            assert_eq!((taken, number), (3 * u64::from(thread), next));
            assert_eq!(found[thread as usize], number);
            next += taken;
        }
        let mut callers: Vec<u32> = log.iter().map(|call| call.0).collect();
        callers.sort_unstable();
        assert_eq!(callers, (0..64).filter(|thread| thread % 2 == 1).collect::<Vec<_>>());
        // The result of the warp's call, in all of its lanes.
        assert!((0..32).step_by(2).all(|thread| found[thread] == 5));
    }
}

fn fault(error: RunError) -> Report {
    match error {
        RunError::Fault(report) => *report,
        other => panic!("no fault: {other}"),
    }
}

#[test]
fn what_a_library_refuses_names_the_call() {
    for policy in POLICIES {
        let report = fault(run(policy, 0, false).unwrap_err());
        assert_eq!(report.cause, Cause::External("no tickets of no size".to_owned()));
        assert!(report.place.text.contains("ticket") && report.place.thread[0] % 2 == 1, "{report}");
        // So does what goes wrong later.
        let report = fault(run(policy, 1, true).unwrap_err());
        assert_eq!(report.cause, Cause::External("out of paper".to_owned()));
        assert!(report.place.text.contains("later") && report.place.line == 19, "{report}");
    }
}
