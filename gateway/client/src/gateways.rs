//! Calls about the registry of gateways. Any node takes them and passes them on to the leader of the meta shard.

use mailbox_api::CallError;
use mailbox_api::v1::{ForgetGatewayRequest, Gateway, ListGatewaysRequest, RegisterGatewayRequest};
use tokio::time::Instant;

use crate::client::Client;

impl Client {
    /// Tells that a gateway is there. Every node is tried once; what is not heard now is told again at the next time
    /// anyway.
    ///
    /// # Errors
    /// `InvalidArgument`: it is no gateway, or a later process has its id. `LimitExceeded`: there are too many.
    /// `StaleEpoch`: not all members of the meta shard know gateways. Else why no node has noted it.
    pub async fn register_gateway(&self, call: RegisterGatewayRequest) -> Result<(), CallError> {
        let told = self.ask_any_until(Instant::now(), |node| {
            let (mut node, call) = (node.cluster(), call.clone());
            async move { node.register_gateway(call).await }
        });
        told.await.map(|_| ())
    }

    /// Takes a gateway out of the registry, if this run of it is registered; with 0 whichever is. True if one was.
    ///
    /// # Errors
    /// The refusal, or the last retryable error at the deadline.
    pub async fn forget_gateway(&self, gateway: &str, run: u64) -> Result<bool, CallError> {
        let call = ForgetGatewayRequest {
            gateway: gateway.to_owned(),
            run,
        };
        let forget = self.ask_any(|node| {
            let (mut node, call) = (node.cluster(), call.clone());
            async move { node.forget_gateway(call).await }
        });
        forget.await.map(|answer| answer.forgotten)
    }

    /// All gateways that have told, in the order of their ids; the silent ones are among them.
    ///
    /// # Errors
    /// As [`Client::plan_steps`].
    pub async fn gateways(&self) -> Result<Vec<Gateway>, CallError> {
        let mut gateways: Vec<Gateway> = Vec::new();
        loop {
            let after = gateways.last().map(|last| last.gateway.clone());
            let call = ListGatewaysRequest {
                after: after.unwrap_or_default(),
                limit: 0,
            };
            let list = self.ask_any(|node| {
                let (mut node, call) = (node.cluster(), call.clone());
                async move { node.list_gateways(call).await }
            });
            let page = list.await?;
            // A page without any could not be gone on from.
            let more = page.more && !page.gateways.is_empty();
            gateways.extend(page.gateways);
            if !more {
                return Ok(gateways);
            }
        }
    }
}
