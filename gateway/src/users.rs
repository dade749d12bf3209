//! Who a token's `sub` is. Ids and handles are for ever, so what was found once stays true.

use std::collections::HashMap;

use mailbox_api::v1;
use mailbox_client::{CallError, Client};
use mailbox_wire::UserRef;
use parking_lot::Mutex;

use crate::convert::user_to_api;

/// Users remembered; when full it is emptied.
const USERS_MAX: usize = 65_536;

/// Finds users' ids.
#[derive(Debug, Default)]
pub(crate) struct Users {
    known: Mutex<HashMap<UserRef, u64>>,
}

impl Users {
    /// The id of a registered user; `UnknownUser` for others.
    pub(crate) async fn id_of(&self, client: &Client, sub: UserRef) -> Result<u64, CallError> {
        if let Some(id) = self.known.lock().get(&sub) {
            return Ok(*id);
        }
        let request = v1::ResolveUserRequest {
            user: Some(user_to_api(sub.clone())),
        };
        let id = client.resolve_user(request).await?.user;
        let mut known = self.known.lock();
        if known.len() >= USERS_MAX {
            known.clear();
        }
        known.insert(sub, id);
        Ok(id)
    }
}
