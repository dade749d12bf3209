//! The clock and the chance of a simulation, in place of the process's.
//!
//! Everything in a Rust process that asks for the time or for random bytes asks the C library in the end: the standard
//! library's clocks and its hash maps, the runtime's own dice, all libraries below. A program that links this crate gets
//! its own `clock_gettime` and `getrandom`. On a thread that has called [`begin`] they give the time of the runtime that
//! is entered there, which a simulation moves, and bytes that follow from a seed; on every other thread they ask the
//! system, as ever. What asks the system without the C library is not reached: `rdtsc`, raw system calls.
//!
//! A run that is to repeat itself needs a process of its own: the runtime counts what it has handed out in the process.

use std::cell::Cell;
use std::time::{Duration, Instant};

use libc::{c_int, c_uint, c_void, clockid_t, size_t, ssize_t, timespec};
use tokio::runtime::Handle;

/// What the wall clock shows at the beginning: the first of 2026.
const WALL_BEGIN: Duration = Duration::from_secs(1_767_225_600);
/// What the other clocks show then: less than the system's, for those who measure a time on this thread and wait for it
/// on another, as RocksDB does.
const BEGIN: Duration = Duration::from_secs(1);

thread_local! {
    /// Whether this thread simulates.
    static IS_ON: Cell<bool> = const { Cell::new(false) };
    /// Whether the runtime is being asked: it may ask back.
    static IS_ASKING: Cell<bool> = const { Cell::new(false) };
    /// The latest time that was given, since the beginning.
    static LATEST: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    static CHANCE: Cell<u64> = const { Cell::new(0) };
}

/// From now on this thread's time begins anew, and goes on as its runtimes say; its random bytes follow from `seed`.
pub fn begin(seed: u64) {
    CHANCE.with(|it| it.set(seed));
    LATEST.with(|it| it.set(Duration::ZERO));
    IS_ON.with(|it| it.set(true));
    BEGAN.with(|it| it.set(Some(Instant::now())));
}

/// Time since [`begin`], as this thread knows it.
#[must_use]
pub fn elapsed() -> Duration {
    if IS_ASKING.with(Cell::get) {
        return LATEST.with(Cell::get);
    }
    IS_ASKING.with(|it| it.set(true));
    let now = Handle::try_current()
        .ok()
        .map(|_| tokio::time::Instant::now());
    IS_ASKING.with(|it| it.set(false));
    let latest = LATEST.with(Cell::get);
    match (now, BEGAN.with(Cell::get)) {
        (Some(now), Some(began)) => {
            let now = now.into_std().saturating_duration_since(began);
            LATEST.with(|it| it.set(latest.max(now)));
            now
        }
        _ => latest,
    }
}

/// Lets this thread know that it is so late, for what runs outside of any runtime.
pub fn advance(to: Duration) {
    LATEST.with(|it| it.set(it.get().max(to)));
}

/// The next random number: splitmix64, by Sebastiano Vigna.
fn next_random() -> u64 {
    let state = CHANCE.with(Cell::get).wrapping_add(0x9e37_79b9_7f4a_7c15);
    CHANCE.with(|it| it.set(state));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn time_of(clock: clockid_t) -> Option<timespec> {
    if !IS_ON.try_with(Cell::get).unwrap_or(false) {
        return None;
    }
    let elapsed = elapsed();
    let time = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => WALL_BEGIN + elapsed,
        libc::CLOCK_MONOTONIC
        | libc::CLOCK_MONOTONIC_COARSE
        | libc::CLOCK_MONOTONIC_RAW
        | libc::CLOCK_BOOTTIME => BEGIN + elapsed,
        // Of a process or a thread: how much it has worked.
        _ => return None,
    };
    Some(timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(time.subsec_nanos()),
    })
}

/// Takes the place of the C library's.
///
/// # Safety
/// As there: `time` is valid for a write.
#[allow(unsafe_code, reason = "it is the C library's interface")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    match time_of(clock) {
        Some(now) => {
            // SAFETY: the caller says so.
            unsafe { time.write(now) };
            0
        }
        // SAFETY: the system call takes what the function does.
        None => unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int },
    }
}

/// Takes the place of the C library's.
///
/// # Safety
/// As there: `len` bytes at `bytes` are valid for writes.
#[allow(unsafe_code, reason = "it is the C library's interface")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(bytes: *mut c_void, len: size_t, flags: c_uint) -> ssize_t {
    if !IS_ON.try_with(Cell::get).unwrap_or(false) {
        // SAFETY: the system call takes what the function does.
        return unsafe { libc::syscall(libc::SYS_getrandom, bytes, len, flags) as ssize_t };
    }
    let mut filled = 0;
    while filled < len {
        let random = next_random().to_le_bytes();
        let part = random.len().min(len - filled);
        // SAFETY: `filled + part` is at most `len`.
        unsafe {
            bytes
                .cast::<u8>()
                .add(filled)
                .copy_from_nonoverlapping(random.as_ptr(), part);
        }
        filled += part;
    }
    len as ssize_t
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::SystemTime;

    use super::*;

    /// On a thread of its own, whose hash maps have not been asked for chance yet.
    fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let worked = std::thread::spawn(work).join();
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    #[test]
    fn the_clocks_show_what_the_runtime_does() {
        on_a_thread(|| {
            begin(1);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime");
            let hour = Duration::from_secs(3600);
            let (slept, wall) = runtime.block_on(async {
                let (begun, wall) = (Instant::now(), SystemTime::now());
                tokio::time::sleep(hour).await;
                (begun.elapsed(), wall.elapsed().unwrap_or_default())
            });
            assert_eq!((slept, wall), (hour, hour));
        });
    }

    #[test]
    fn chance_follows_from_the_seed() {
        let order = |seed| {
            on_a_thread(move || {
                begin(seed);
                let map: HashMap<u32, u32> = (0..100).map(|key| (key, key)).collect();
                map.into_keys().collect::<Vec<u32>>()
            })
        };
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
    }

    #[test]
    fn other_threads_ask_the_system() {
        begin(1);
        let (begun, wall) = on_a_thread(|| (Instant::now(), SystemTime::now()));
        let (later, _) = on_a_thread(|| (Instant::now(), SystemTime::now()));
        assert!(later >= begun);
        let since = wall.duration_since(SystemTime::UNIX_EPOCH);
        assert_ne!(since.unwrap_or_default(), WALL_BEGIN);
    }
}
