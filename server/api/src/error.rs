//! The one error that every call can end with, and its way through a gRPC status.

use prost::Message as _;
use tonic::{Code, Status};

use crate::v1::{Error, ErrorCode};

/// Greatest encoded [`Error`] that a status carries, in bytes; HTTP/2 headers are bounded.
pub const ERROR_DETAILS_BYTES_MAX: usize = 2048;

/// A refusal or a failure of a call, as a client sees it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{code}: {message}", code = self.code().name(), message = self.0.message)]
pub struct CallError(pub Error);

impl CallError {
    /// A refusal with its words for people.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Error {
            code: code as i32,
            message: message.into(),
            ..Error::default()
        })
    }

    /// The stable code; an unknown one (of a newer node) reads as `Internal`.
    pub fn code(&self) -> ErrorCode {
        ErrorCode::try_from(self.0.code).unwrap_or(ErrorCode::Internal)
    }

    /// Whether the same call, with the same id, may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.code().is_retryable()
    }

    /// Reads the error out of a unary call's status; a status from elsewhere (a broken
    /// connection, however HTTP/2 words its end, or a proxy) becomes the nearest code.
    pub fn from_status(status: &Status) -> Self {
        if let Ok(error) = Error::decode(status.details())
            && error.code != 0
        {
            return Self(error);
        }
        let code = match status.code() {
            Code::Unimplemented => ErrorCode::Internal,
            // A node that has failed says so in details.
            Code::Ok
            | Code::Unknown
            | Code::Internal
            | Code::DataLoss
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Unavailable => ErrorCode::Unavailable,
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition => ErrorCode::InvalidArgument,
            Code::PermissionDenied => ErrorCode::Forbidden,
            Code::ResourceExhausted | Code::OutOfRange => ErrorCode::LimitExceeded,
            Code::Unauthenticated => ErrorCode::Unauthenticated,
        };
        Self::new(code, status.message())
    }

    /// The status of a unary call that ends with this error.
    pub fn to_status(&self) -> Status {
        let mut details = self.0.encode_to_vec();
        if details.len() > ERROR_DETAILS_BYTES_MAX {
            let bare = Error {
                message: String::new(),
                ..self.0.clone()
            };
            details = bare.encode_to_vec();
        }
        Status::with_details(
            self.code().grpc_code(),
            self.0.message.clone(),
            details.into(),
        )
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        error.to_status()
    }
}

impl ErrorCode {
    /// The name in JSON, logs and messages: `IdReused`, not `ERROR_CODE_ID_REUSED`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "Unspecified",
            Self::Unavailable => "Unavailable",
            Self::NotLeader => "NotLeader",
            Self::Retry => "Retry",
            Self::Busy => "Busy",
            Self::DiskFull => "DiskFull",
            Self::ClockSkew => "ClockSkew",
            Self::WrongShard => "WrongShard",
            Self::IdReused => "IdReused",
            Self::IdExpired => "IdExpired",
            Self::IdFromFuture => "IdFromFuture",
            Self::Corrupt => "Corrupt",
            Self::BodyTooLarge => "BodyTooLarge",
            Self::UnknownUser => "UnknownUser",
            Self::UnknownGroup => "UnknownGroup",
            Self::NotAMember => "NotAMember",
            Self::HandleTaken => "HandleTaken",
            Self::InvalidHandle => "InvalidHandle",
            Self::GroupFull => "GroupFull",
            Self::AlreadyAMember => "AlreadyAMember",
            Self::Resync => "Resync",
            Self::SeqBeyondHead => "SeqBeyondHead",
            Self::TooManyGroups => "TooManyGroups",
            Self::TooManyDevices => "TooManyDevices",
            Self::Unauthenticated => "Unauthenticated",
            Self::Forbidden => "Forbidden",
            Self::InvalidArgument => "InvalidArgument",
            Self::LimitExceeded => "LimitExceeded",
            Self::WrongCluster => "WrongCluster",
            Self::Internal => "Internal",
            Self::NodeTaken => "NodeTaken",
            Self::NodeRemoved => "NodeRemoved",
            Self::StaleDisk => "StaleDisk",
            Self::UnknownNode => "UnknownNode",
            Self::UnknownShard => "UnknownShard",
            Self::NodeInUse => "NodeInUse",
            Self::StaleEpoch => "StaleEpoch",
            Self::UnknownDeadLetter => "UnknownDeadLetter",
            Self::DeadLetterResolved => "DeadLetterResolved",
            Self::TooStale => "TooStale",
        }
    }

    /// Whether the same call, with the same id, may succeed later without a change by the caller.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::Unavailable
            | Self::NotLeader
            | Self::Retry
            | Self::Busy
            | Self::DiskFull
            | Self::ClockSkew
            | Self::WrongShard
            | Self::TooStale => true,
            Self::Unspecified
            | Self::IdReused
            | Self::IdExpired
            | Self::IdFromFuture
            | Self::Corrupt
            | Self::BodyTooLarge
            | Self::UnknownUser
            | Self::UnknownGroup
            | Self::NotAMember
            | Self::HandleTaken
            | Self::InvalidHandle
            | Self::GroupFull
            | Self::AlreadyAMember
            | Self::Resync
            | Self::SeqBeyondHead
            | Self::TooManyGroups
            | Self::TooManyDevices
            | Self::Unauthenticated
            | Self::Forbidden
            | Self::InvalidArgument
            | Self::LimitExceeded
            | Self::WrongCluster
            | Self::Internal
            | Self::NodeTaken
            | Self::NodeRemoved
            | Self::StaleDisk
            | Self::UnknownNode
            | Self::UnknownShard
            | Self::NodeInUse
            | Self::StaleEpoch
            | Self::UnknownDeadLetter
            | Self::DeadLetterResolved => false,
        }
    }

    /// The gRPC code of a unary call's status.
    pub const fn grpc_code(self) -> Code {
        match self {
            Self::Unavailable
            | Self::NotLeader
            | Self::Retry
            | Self::ClockSkew
            | Self::WrongShard
            | Self::TooStale => Code::Unavailable,
            Self::Busy
            | Self::DiskFull
            | Self::LimitExceeded
            | Self::GroupFull
            | Self::TooManyGroups
            | Self::TooManyDevices => Code::ResourceExhausted,
            Self::IdReused | Self::HandleTaken | Self::AlreadyAMember | Self::NodeTaken => {
                Code::AlreadyExists
            }
            Self::IdExpired
            | Self::IdFromFuture
            | Self::Resync
            | Self::SeqBeyondHead
            | Self::NodeRemoved
            | Self::StaleDisk
            | Self::NodeInUse
            | Self::StaleEpoch
            | Self::DeadLetterResolved => Code::FailedPrecondition,
            Self::Corrupt => Code::DataLoss,
            Self::BodyTooLarge | Self::InvalidHandle | Self::InvalidArgument => {
                Code::InvalidArgument
            }
            Self::UnknownUser
            | Self::UnknownGroup
            | Self::UnknownNode
            | Self::UnknownShard
            | Self::UnknownDeadLetter => Code::NotFound,
            Self::NotAMember | Self::Forbidden | Self::WrongCluster => Code::PermissionDenied,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::Unspecified | Self::Internal => Code::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_its_status() {
        let error = CallError(Error {
            code: ErrorCode::NotLeader as i32,
            message: "node 2 leads shard 0".into(),
            retry_after_ms: 5,
            leader_node: 2,
            leader_address: "127.0.0.1:7002".into(),
            map_epoch: 3,
        });
        assert_eq!(CallError::from_status(&error.to_status()), error);
    }

    #[test]
    fn a_status_without_details_maps_to_the_nearest_code() {
        let error = CallError::from_status(&Status::unavailable("connection refused"));
        assert_eq!(error.code(), ErrorCode::Unavailable);
        assert!(error.is_retryable());
        let error = CallError::from_status(&Status::internal("h2 protocol error: http2 error"));
        assert!(error.is_retryable(), "a connection that broke");
        let failed = CallError::new(ErrorCode::Internal, "apply gave no reply").to_status();
        let failed = CallError::from_status(&failed);
        assert!(!failed.is_retryable(), "a node that says that it failed");
    }
}
