//! Result codes: kept inside cust_raw's enum, and named without a driver.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

use cust_raw::CUresult;

use crate::library::Slot;
use crate::table::known_result;

thread_local! {
    // Const-initialised and without a destructor, so reading it can neither allocate nor fail.
    static LAST_UNKNOWN: Cell<u32> = const { Cell::new(0) };
}

/// The number that the driver returned for a result of the latest failed call on this thread: the result's own,
/// or what stood behind `CUDA_ERROR_UNKNOWN`.
pub fn code(result: CUresult) -> u32 {
    match (result, LAST_UNKNOWN.get()) {
        (CUresult::CUDA_ERROR_UNKNOWN, unknown @ 1..) => unknown,
        (known, _) => known as u32,
    }
}

/// Turns a driver function's return value into a [`CUresult`]; one that the enum does not know becomes
/// `CUDA_ERROR_UNKNOWN`, and its number is kept for [`code`].
#[inline]
pub fn result(code: u32) -> CUresult {
    if code == CUresult::CUDA_SUCCESS as u32 { CUresult::CUDA_SUCCESS } else { failure(code) }
}

#[cold]
fn failure(code: u32) -> CUresult {
    let known = known_result(code).map(|(result, _)| result);
    LAST_UNKNOWN.set(if known.is_none() { code } else { 0 });
    known.unwrap_or(CUresult::CUDA_ERROR_UNKNOWN)
}

/// What a result code means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning {
    /// Its name in `cuda.h`: `CUDA_ERROR_OUT_OF_MEMORY`.
    pub name: String,
    /// The driver's words for it: `out of memory`.
    pub text: String,
}

/// What a result code means: by the driver, which knows its own newer ones, or by this crate without one.
pub fn meaning(code: u32) -> Meaning {
    let own_name = known_result(code).and_then(|(_, name)| name.to_str().ok());
    let name = ask_driver(c"cuGetErrorName", code)
        .or_else(|| own_name.map(str::to_owned))
        .unwrap_or_else(|| format!("CUDA result {code}"));
    let text = ask_driver(c"cuGetErrorString", code).unwrap_or_else(|| name.clone());
    Meaning { name, text }
}

fn ask_driver(function: &CStr, code: u32) -> Option<String> {
    type Describe = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;
    let mut text = std::ptr::null();
    // SAFETY: both functions have this signature, the enum read as the integer it is in C.
    let describe: Describe = unsafe { crate::symbol(function) }.ok()?;
    // SAFETY: writes one pointer.
    let answered = unsafe { describe(code, &mut text) } == 0 && !text.is_null();
    // SAFETY: the driver's texts are C strings that live as long as it is loaded: for ever.
    answered.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Answers in the driver's place: cust formats its errors through these two functions and panics when they fail.
fn answer(error: CUresult, text: *mut *const c_char) -> CUresult {
    if text.is_null() {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    let (result, answer): (CUresult, &'static CStr) = match known_result(error as u32) {
        Some((_, name)) => (CUresult::CUDA_SUCCESS, name),
        None => (CUresult::CUDA_ERROR_INVALID_VALUE, c"unrecognised CUDA result"),
    };
    // SAFETY: the caller gave a place for one pointer, as cuda.h asks; the text is static.
    unsafe { text.write(answer.as_ptr()) };
    result
}

macro_rules! described_by_the_driver {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(error: CUresult, text: *mut *const c_char) -> CUresult {
            static SLOT: Slot = Slot::new();
            let name = const { crate::shim::c_name(concat!(stringify!($name), "\0")) };
            match SLOT.get(name) {
                Ok(address) => {
                    type Function = unsafe extern "C" fn(CUresult, *mut *const c_char) -> u32;
                    // SAFETY: the address is the driver's function of this name; cust_raw's declaration, checked
                    // below, has this signature with an enum where the driver returns a plain integer.
                    let call: Function = unsafe { std::mem::transmute(address.as_ptr()) };
                    // SAFETY: our caller's promise about its arguments is the driver's requirement.
                    result(unsafe { call(error, text) })
                }
                Err(_) => answer(error, text),
            }
        }
        const _: unsafe extern "C" fn(CUresult, *mut *const c_char) -> CUresult = cust_raw::$name;
    )*};
}
described_by_the_driver!(cuGetErrorString, cuGetErrorName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_codes_pass_and_unknown_ones_are_clamped_and_kept() {
        assert_eq!(result(0), CUresult::CUDA_SUCCESS);
        assert_eq!(code(result(2)), 2);
        for unknown in [912, 36, 99_999, u32::MAX] {
            assert_eq!(result(unknown), CUresult::CUDA_ERROR_UNKNOWN);
            assert_eq!(code(CUresult::CUDA_ERROR_UNKNOWN), unknown);
        }
        assert_eq!(code(result(700)), 700);
        assert_eq!(code(result(999)), 999, "a true CUDA_ERROR_UNKNOWN forgets the clamped one before it");
    }
}
