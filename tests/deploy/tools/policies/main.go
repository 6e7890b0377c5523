// Enforces NetworkPolicies on a machine that plays several nodes. kube-network-policies itself serves one node, from a pod.
package main

import (
	"context"
	"flag"
	"os/signal"
	"syscall"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the cluster")
	klog.InitFlags(nil)
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		klog.Fatal(err)
	}
	ended := make(chan error)
	for number, node := range flag.Args() {
		// Each node has a table of its own, and a queue in which first packets of connections wait for their verdict.
		factory := informers.NewSharedInformerFactory(client, 0)
		controller, err := networkpolicy.NewController(client, factory.Networking().V1().NetworkPolicies(),
			factory.Core().V1().Namespaces(), factory.Core().V1().Pods(), nil, nil, nil, nil,
			networkpolicy.Config{
				NodeName: node, NFTableName: "headrace-" + node, QueueID: 100 + number, NRIdisabled: true,
			})
		if err != nil {
			klog.Fatal(err)
		}
		factory.Start(ctx.Done())
		go func() { ended <- controller.Run(ctx) }()
	}
	for range flag.Args() {
		if err := <-ended; err != nil && ctx.Err() == nil {
			klog.Fatal(err)
		}
	}
}
