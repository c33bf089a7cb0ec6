//! `setmaxnreg`: what a block has is what its warps hand to each other.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, params};
use ptx_emulator::{MachineOptions, Policy, RunError};

/// Three warpgroups, of 168 registers a thread: the first executes one text, the others another; all store.
fn run(bounds: &str, first: &str, others: &str, policy: Policy) -> Result<Vec<u32>, RunError> {
    let source = format!(
        ".visible .entry k(.param .u64 out) {bounds} {{
          .reg .b64 %out, %rd; .reg .b32 %tid; .reg .pred %other;
          ld.param.u64 %out, [out]; mov.u32 %tid, %tid.x; setp.ge.u32 %other, %tid, 128;
          mul.wide.u32 %rd, %tid, 4; add.u64 %out, %out, %rd;
          @%other bra OTHERS; {first} bra BOTH; OTHERS: {others} BOTH:
          st.global.b32 [%out], %tid; ret;
        }}"
    );
    let options = MachineOptions { policy, seed: 3, ..MachineOptions::default() };
    let mut rig = Rig::of(&source.replace("sm_90\n", "sm_90a\n"), options);
    let out = rig.upload(&[0xFF; 4 * 384], "out");
    rig.run("k", [1, 1, 1], [384, 1, 1], 0, &params(&[out], &[]))?;
    Ok(rig.words(out, 384))
}

const BOUNDS: &str = ".maxntid 384, 1, 1 .minnctapersm 1";
const POLICIES: [Policy; 3] = [Policy::RoundRobin, Policy::Random, Policy::Adversarial];

fn change(which: &str, count: u32) -> String {
    format!("setmaxnreg.{which}.sync.aligned.u32 {count};")
}

#[test]
fn warps_take_what_others_give_back() {
    for policy in POLICIES {
        let threads = run(BOUNDS, &change("dec", 40), &change("inc", 232), policy).unwrap();
        assert!(threads.into_iter().eq(0..384));
    }
}

#[test]
fn taking_waits_for_as_many_as_there_are() {
    for policy in POLICIES {
        // 128 threads give 128 each, 256 want 72 each.
        let error = run(BOUNDS, &change("dec", 40), &change("inc", 240), policy).unwrap_err();
        let RunError::Deadlock(deadlock) = error else { panic!("{error}") };
        let waiter = &deadlock.waiters[0];
        assert!(waiter.place.text.starts_with("setmaxnreg.inc"), "{waiter:?}");
        assert!(waiter.waits_for.contains("registers: its threads have 168 each"), "{waiter:?}");
    }
}

#[test]
fn what_has_no_meaning_is_refused() {
    let refusal = |bounds, first: &str, others: &str| match run(bounds, first, others, Policy::RoundRobin) {
        Err(RunError::Fault(report)) => report.cause.to_string(),
        other => panic!("no fault: {other:?}"),
    };
    assert!(refusal("", &change("dec", 40), "").contains("`.maxntid` and `.minnctapersm`"));
    assert!(refusal(BOUNDS, &change("dec", 176), "").contains("`.dec` to more"));
    assert!(refusal(BOUNDS, &change("inc", 160), "").contains("`.inc` to fewer"));
    // One warp of the group goes another way.
    let apart = format!("setp.lt.u32 %other, %tid, 32; @%other bra BOTH; {}", change("dec", 40));
    assert!(refusal(BOUNDS, &apart, "").contains("not all warps of the group"));
}
