package audit

// Types lists every type of event there is, for whoever offers a choice.
func Types() []Type {
	return []Type{
		TypeAuthentication, TypeTokenIssued, TypeTokenExchanged, TypeTokenRevoked, TypeIntrospection, TypeCredential, TypeManagement, TypeManagementRead,
		TypeConfiguration, TypeRecordRefused, TypeRevocation, TypeAddressBlocked, TypePolicyDryRun, TypeCICD, TypeEventsLost, TypeServerStarted,
		TypeServerStopped,
	}
}
