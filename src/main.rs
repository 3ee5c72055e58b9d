//! The `authkit-sync` binary.

/// Every request allocates some dozens of times. glibc's allocator takes a third of the time of a lookup.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    authkit_sync::cli::main()
}
