//! Reads a node's Prometheus page.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::door;
use crate::node::Node;

/// Greatest page that is read, in bytes.
const PAGE_BYTES_MAX: u64 = 4 << 20;
/// How long a page may take.
const PAGE_WITHIN: Duration = Duration::from_secs(5);

impl Node {
    /// The sum of a metric of its server over all labels; `None` if there is no such metric.
    ///
    /// # Errors
    /// When its metrics page is not served.
    pub async fn metric(&self, name: &str) -> anyhow::Result<Option<u64>> {
        let page = self.metrics_page().await?;
        Ok(page.and_then(|page| sum(&page, name)))
    }

    /// Its whole Prometheus page, for who wants several metrics of one moment; `None` if it serves none.
    ///
    /// # Errors
    /// As [`Node::metric`].
    pub async fn metrics_page(&self) -> anyhow::Result<Option<String>> {
        let Some(address) = self.metrics_address() else {
            return Ok(None);
        };
        let page = page(address, None)
            .await
            .with_context(|| format!("read the metrics of node {} at {address}", self.id()))?;
        Ok(Some(page))
    }

    /// The same of its gateway; `None` if it has none that runs, too.
    ///
    /// # Errors
    /// When its metrics page is not served.
    pub async fn gateway_metric(&self, name: &str) -> anyhow::Result<Option<u64>> {
        let running = self
            .gateway_address()
            .filter(|_| self.gateway_pid().is_some());
        let Some(address) = running else {
            return Ok(None);
        };
        let page = page(address, self.gateway_certificate())
            .await
            .with_context(|| {
                let id = self.id();
                format!("read the metrics of the gateway of node {id} at {address}")
            })?;
        Ok(sum(&page, name))
    }
}

async fn page(address: &str, trusted: Option<&Path>) -> anyhow::Result<String> {
    let page = tokio::time::timeout(PAGE_WITHIN, ask_page(address, trusted));
    page.await?
}

async fn ask_page(address: &str, trusted: Option<&Path>) -> anyhow::Result<String> {
    let mut stream = door::connect(address, trusted).await?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = String::new();
    stream
        .take(PAGE_BYTES_MAX)
        .read_to_string(&mut response)
        .await?;
    let Some((head, body)) = response.split_once("\r\n\r\n") else {
        bail!("no HTTP response")
    };
    if !head.starts_with("HTTP/1.1 200") && !head.starts_with("HTTP/1.0 200") {
        bail!("answered {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

/// The sum of a metric over all its labels; `None` if the page does not have it.
#[must_use]
pub fn sum(page: &str, name: &str) -> Option<u64> {
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_whitespace().next()?.parse::<u64>().ok()
    });
    values.reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let page = "# TYPE mailbox_log_fsyncs counter\nmailbox_log_fsyncs_total 41\n\
            mailbox_x_total{shard=\"0\"} 3\nmailbox_x_total{shard=\"1\"} 4\n\
            mailbox_x_total_other 9\n";
        assert_eq!(sum(page, "mailbox_log_fsyncs_total"), Some(41));
        assert_eq!(sum(page, "mailbox_x_total"), Some(7));
        assert_eq!(sum(page, "mailbox_y_total"), None);
    }
}
