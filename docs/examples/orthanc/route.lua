-- Sends every radiograph that is stored to the modality WSCXR, see docs/node.md. Results (SC, SEG, SR) stay.
-- Each transfer is a job of its own; one that fails stays in the list of jobs, from which resubmit.sh takes it.
function OnStoredInstance(instanceId, tags, metadata, origin)
  if tags['Modality'] == 'DX' or tags['Modality'] == 'CR' then
    local order = { Resources = { instanceId }, Synchronous = false, Permissive = false }
    RestApiPost('/modalities/WSCXR/store', DumpJson(order, true))
  end
end
