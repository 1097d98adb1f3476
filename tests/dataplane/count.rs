//! The system's allocator, counting.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How the names of the threads begin that carry packets.
const DATA_THREADS: [&[u8]; 2] = [b"mesh-data", b"mesh-out"];

static WATCHED: AtomicBool = AtomicBool::new(false);
static BY_DATA_THREADS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Needs neither memory nor a destructor, so that the allocator may touch it.
    static HERE: Cell<u64> = const { Cell::new(0) };
}

pub(crate) struct Counting;

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the promises of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the promises of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the promises of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count() {
    HERE.set(HERE.get() + 1);
    if WATCHED.load(Ordering::Relaxed) && is_data_thread() {
        BY_DATA_THREADS.fetch_add(1, Ordering::Relaxed);
    }
}

fn is_data_thread() -> bool {
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes of the thread's name.
    let result = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    result == 0 && DATA_THREADS.iter().any(|start| name.starts_with(start))
}

/// Allocations of this thread while `work` runs.
pub(crate) fn of(work: impl FnOnce()) -> u64 {
    let before = HERE.get();
    work();
    HERE.get() - before
}

/// From now on the data threads are counted.
pub(crate) fn watch_data_threads() {
    WATCHED.store(true, Ordering::Relaxed);
}

/// Allocations of all data threads since they are counted.
pub(crate) fn by_data_threads() -> u64 {
    BY_DATA_THREADS.load(Ordering::Relaxed)
}
