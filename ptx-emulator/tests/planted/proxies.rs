//! Shared memory that two proxies access, without the fence between them.

use std::sync::Arc;

use ptx_emulator::memory::Fault;
use ptx_emulator::{MachineOptions, Module, RunError};

use crate::{Mode, Plant, fault, memory_fault, run_block};

fn copy_out(module: &Arc<Module>, options: MachineOptions) -> Result<Vec<u32>, RunError> {
    run_block(module, options, 128, &[("out", 512, None)], &[])
}

fn copy_in(module: &Arc<Module>, options: MachineOptions) -> Result<Vec<u32>, RunError> {
    run_block(module, options, 128, &[("from", 512, Some(0)), ("out", 512, None)], &[])
}

type Run = fn(&Arc<Module>, MachineOptions) -> Result<Vec<u32>, RunError>;

/// The sound twin passes; the race check names the store and the copy of the planted one, and by which thread.
fn assert_found(name: &str, run: Run, [store, copy]: [&str; 2], by: Option<u32>) {
    let plant = Plant::new(name);
    plant.is_sound(20, run, |found| assert_eq!(found, (0..128).collect::<Vec<_>>()));
    for error in plant.reports(Mode::Race, run) {
        assert!(matches!(memory_fault(&error), Fault::Proxy { .. }), "{error}");
        let report = fault(&error);
        let other = report.other.as_ref().expect("the store");
        assert!(report.place.text.starts_with(copy) && other.text.contains(store), "{error}");
        assert!(by.is_none_or(|by| other.thread == [by, 0, 0]), "{error}");
        assert!(error.to_string().contains("fence.proxy.async"), "{error}");
    }
}

#[test]
fn a_copy_of_what_was_stored_without_a_proxy_fence() {
    assert_found("unfenced_copy", copy_out, ["st.shared", "cp.async.bulk.global"], Some(0));
}

#[test]
fn a_store_behind_its_proxy_fence() {
    assert_found("late_proxy_fence", copy_out, ["st.shared", "cp.async.bulk.global"], Some(77));
}

#[test]
fn a_copy_over_what_was_stored_without_a_proxy_fence() {
    assert_found("unfenced_overwrite", copy_in, ["st.shared", "cp.async.bulk.shared"], Some(0));
}

#[test]
fn an_asynchronous_copy_of_the_generic_proxy() {
    assert_found("unfenced_async_copy", copy_in, ["cp.async.ca", "cp.async.bulk.global"], None);
}

/// A fence of global memory, or of aliases, is none of shared memory.
#[test]
fn a_proxy_fence_of_something_else() {
    let text = include_str!("unfenced_copy.ptx");
    for other in ["fence.proxy.async.global;", "fence.proxy.alias;"] {
        let text = text.replace("fence.proxy.async.shared::cta;", other);
        let module = Arc::new(Module::new("other.ptx", &text).unwrap());
        let error = copy_out(&module, crate::options(crate::POLICIES[0], 0, Mode::Race)).unwrap_err();
        assert!(matches!(memory_fault(&error), Fault::Proxy { .. }), "{error}");
    }
}
