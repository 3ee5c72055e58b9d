//! sqlx's macros read an embedding application's `DATABASE_URL` before our committed query data, and its build would then
//! fail against its own database. So offline is the default; `cargo sqlx prepare` and a set `SQLX_OFFLINE` override it.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
    println!("cargo::rerun-if-env-changed=SQLX_OFFLINE");
    if std::env::var_os("SQLX_OFFLINE").is_none() {
        println!("cargo::rustc-env=SQLX_OFFLINE=true");
    }
}
