//! stub
#![expect(missing_docs)]
pub fn http_client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder().build()
}
