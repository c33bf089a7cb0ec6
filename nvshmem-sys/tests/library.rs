//! The real library, where there is one (NVSHMEM_HOME or a Python package); on machines without a driver too.

use nvshmem_sys::{Error, Library, Nvshmem, Release, UniqueId};

/// Where there is no library, the test says so; with NVSHMEM_HOME set it has to be there.
fn library() -> Option<Library> {
    match Library::open() {
        Ok(library) => Some(library),
        Err(Error::NotFound) => {
            eprintln!("skipped: {}", Error::NotFound);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_library_says_what_it_is_and_does_not_come_up_without_a_device() {
    let Some(library) = library() else { return };
    let release = library.release();
    assert!(release.major == 3 && release.minor >= 4, "{release}");
    assert_eq!(library.expect_release(release), Ok(()));
    let other = Release { patch: release.patch + 1, ..release };
    let refusal = library.expect_release(other).unwrap_err().to_string();
    assert!(refusal.contains(&release.to_string()) && refusal.contains(&other.to_string()), "{refusal}");

    // The driver may be there in a container without a GPU: what counts is whether a device is.
    if std::path::Path::new("/dev/nvidia0").exists() {
        return;
    }
    let id = UniqueId::new(&library).unwrap();
    assert_eq!(UniqueId::from_bytes(id.to_bytes()).to_bytes(), id.to_bytes());
    match Nvshmem::init(library, id, 0, 1) {
        Err(Error::NoDevice { .. } | Error::Call { .. }) => {}
        other => panic!("initialised without a device: {other:?}"),
    }
    let again = Nvshmem::init(self::library().unwrap(), id, 0, 1).unwrap_err();
    assert_eq!(again, Error::AlreadyInitialized);
}
