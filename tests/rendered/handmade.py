"""A release by hand, of stubs: for tests of the kubelet itself."""

from __future__ import annotations

from tests.rendered.manifests import Manifests

NAMESPACE = "models"
_TEXT = """
apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {greeting: hello, server.conf: "bind 0.0.0.0\\ndir /data\\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
data: {password: czNjcmV0}
---
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app.kubernetes.io/component: gateway}}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: ranks}
spec: {clusterIP: None, selector: {app: ranks}, ports: [{name: http, port: 8000}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader}
automountServiceAccountToken: true
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 30
      serviceAccountName: reader
      initContainers:
        - name: prepare
          command: [python, -c, "import sys; open(sys.argv[1] + '/made', 'w').write('by init')"]
          args: ["/files"]
          volumeMounts: [{name: files, mountPath: /files}]
      containers:
        - name: web
          command: [python, -m, tests.rendered.stub]
          args: ["0.0.0.0", "8000"]
          env:
            - {name: FILES, value: /files}
            - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
            - {name: STORE, value: "redis://:$(PASSWORD)@ranks-0.ranks.models.svc:8000/$$(x)"}
            - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
          ports: [{name: http, containerPort: 8000}]
          volumeMounts: [{name: files, mountPath: /files}]
          lifecycle: {preStop: {sleep: {seconds: 1}}}
          startupProbe:
            {httpGet: {path: /health, port: http}, periodSeconds: 1, failureThreshold: 60}
          readinessProbe:
            {httpGet: {path: /ready, port: http}, periodSeconds: 1, failureThreshold: 1}
          livenessProbe: {httpGet: {path: /health, port: http}, periodSeconds: 1}
      volumes: [{name: files, emptyDir: {}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ranks}
spec:
  replicas: 2
  serviceName: ranks
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: ranks}}
  template:
    metadata: {labels: {app: ranks}}
    spec:
      terminationGracePeriodSeconds: 30
      automountServiceAccountToken: false
      containers:
        - name: rank
          command: [python, -m, tests.rendered.stub]
          args: ["0.0.0.0", "8000"]
          env:
            - {name: FILES, value: /words}
            - name: POD_INDEX
              valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}
            - {name: NEXT, value: "ranks-{}.ranks.models.svc:8000"}
          ports: [{name: http, containerPort: 8000}]
          volumeMounts: [{name: words, mountPath: /words}, {name: data, mountPath: /data}]
          readinessProbe: {tcpSocket: {port: http}, periodSeconds: 1}
      volumes: [{name: words, configMap: {name: words}}]
  volumeClaimTemplates: [{metadata: {name: data}, spec: {}}]
"""


def release() -> Manifests:
    """A Deployment `web` of one pod and a StatefulSet `ranks` of two, with a Service each."""
    return Manifests.of_text(NAMESPACE, _TEXT)
