//! What a caller of the `cu*` symbols sees without a driver and with a stub in its place.

mod stub;

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::Path;

use cuda_lazy::{CUresult, CudaVersion, SymbolError};
use stub::{StubDriver, answer_of, is_child};

/// Child: what `driver()` says.
#[test]
#[ignore = "run by the tests below"]
fn child_driver() {
    if !is_child() {
        return;
    }
    match cuda_lazy::driver(CudaVersion::new(11, 4)) {
        Ok(driver) => println!("answer: CUDA {}, {} device(s)", driver.version, driver.device_count),
        Err(error) => println!("answer: {error}"),
    }
}

/// Child: calls without any driver, through cust_raw as cust makes them.
#[test]
#[ignore = "run by the tests below"]
fn child_calls_without_driver() {
    if !is_child() {
        return;
    }
    let mut value: c_int = -1;
    // SAFETY: each call gets places for what it writes; null and zero handles are refused by a driver.
    unsafe {
        assert_eq!(cust_raw::cuInit(0), CUresult::CUDA_ERROR_NO_DEVICE);
        assert_eq!(cust_raw::cuDeviceGetCount(&mut value), CUresult::CUDA_ERROR_NO_DEVICE);
        assert_eq!(cust_raw::cuMemFree_v2(0), CUresult::CUDA_ERROR_NO_DEVICE);
        let graph = std::ptr::null_mut();
        assert_eq!(cust_raw::cuGraphLaunch(graph, std::ptr::null_mut()), CUresult::CUDA_ERROR_NO_DEVICE);
        assert_eq!(
            cuda_lazy::newer::cuLibraryUnload(cuda_lazy::newer::CUlibrary(std::ptr::null_mut())),
            CUresult::CUDA_ERROR_NO_DEVICE
        );
    }
    assert_eq!(value, -1);

    let mut text: *const c_char = std::ptr::null();
    // SAFETY: as above.
    let result = unsafe { cust_raw::cuGetErrorName(CUresult::CUDA_ERROR_LAUNCH_FAILED, &mut text) };
    assert_eq!(result, CUresult::CUDA_SUCCESS);
    // SAFETY: a static C string, as the result says.
    println!("answer: {}", unsafe { CStr::from_ptr(text) }.to_string_lossy());
    // SAFETY: null is refused, not written to.
    let refused = unsafe { cust_raw::cuGetErrorString(CUresult::CUDA_ERROR_UNKNOWN, std::ptr::null_mut()) };
    assert_eq!(refused, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(cuda_lazy::meaning(912).name, "CUDA result 912");
}

/// Child: results, symbols and texts of the stub.
#[test]
#[ignore = "run by the tests below"]
fn child_calls_with_stub() {
    if !is_child() {
        return;
    }
    let mut value: c_int = 0;
    // SAFETY: writes one int.
    let result = unsafe { cust_raw::cuDriverGetVersion(&mut value) };
    assert_eq!((result, cuda_lazy::code(result)), (CUresult::CUDA_ERROR_UNKNOWN, 912));
    // SAFETY: the stub does not have this function, so nothing is called.
    let missing = unsafe { cust_raw::cuProfilerStart() };
    assert_eq!(missing, CUresult::CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND);

    type GetCount = unsafe extern "C" fn(*mut c_int) -> c_uint;
    // SAFETY: cuDeviceGetCount's signature.
    let get_count: GetCount = unsafe { cuda_lazy::symbol(c"cuDeviceGetCount") }.expect("the stub has it");
    // SAFETY: writes one int.
    assert_eq!((unsafe { get_count(&mut value) }, value), (0, 1));
    // SAFETY: any function pointer type will do for one that is not there.
    let nothing = unsafe { cuda_lazy::symbol::<GetCount>(c"cuNoSuchThing") };
    assert!(matches!(nothing, Err(SymbolError::Missing { name, .. }) if name == "cuNoSuchThing"));

    let meaning = cuda_lazy::meaning(912);
    println!("answer: {}: {}", meaning.name, meaning.text);
}

const ABSENT: &str = "/nowhere/libcuda.so.1";

#[test]
fn without_a_driver_everything_answers_and_says_why() {
    let sentence = answer_of("child_driver", Path::new(ABSENT), &[]);
    assert!(
        sentence.starts_with("no CUDA driver: /nowhere/libcuda.so.1 could not be opened (cannot open"),
        "{sentence}"
    );
    assert!(sentence.ends_with("install NVIDIA's driver or set FEWSYNC_LIBCUDA to its path"), "{sentence}");
    assert_eq!(answer_of("child_calls_without_driver", Path::new(ABSENT), &[]), "CUDA_ERROR_LAUNCH_FAILED");
}

#[test]
fn each_bad_driver_is_one_clear_sentence() {
    let Some(stub) = StubDriver::build() else { return };
    let path = stub.path();
    let name = path.display();
    let driver = |variables: &[(&str, &str)]| answer_of("child_driver", &path, variables);
    assert_eq!(driver(&[("STUB_VERSION", "12040"), ("STUB_DEVICES", "3")]), "CUDA 12.4, 3 device(s)");
    assert_eq!(
        driver(&[("STUB_VERSION", "11020")]),
        format!(
            "the CUDA driver {name} supports CUDA 11.2, but 11.4 or newer is needed: update NVIDIA's driver"
        )
    );
    let no_gpu =
        format!("the CUDA driver {name} (CUDA 13.0) sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES");
    assert_eq!(driver(&[("STUB_DEVICES", "0")]), no_gpu);
    assert_eq!(driver(&[("STUB_INIT", "100")]), no_gpu);
    assert_eq!(
        driver(&[("STUB_INIT", "803")]),
        format!(
            "the CUDA driver {name} does not start: cuInit returned CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (stub error); \
             check nvidia-smi and that the driver's library and kernel module are of one version"
        )
    );
}

#[test]
fn newer_results_and_missing_functions_are_told_apart() {
    let Some(stub) = StubDriver::build() else { return };
    let answer = answer_of("child_calls_with_stub", &stub.path(), &[("STUB_FAIL", "cuDriverGetVersion=912")]);
    assert_eq!(answer, "CUDA_ERROR_FROM_THE_FUTURE: something new");
}
