//! The `authkit-sync` binary.

fn main() -> std::process::ExitCode {
    authkit_sync::cli::main()
}
