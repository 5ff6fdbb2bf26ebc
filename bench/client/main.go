// SPDX-License-Identifier: Apache-2.0

// Plays the kubelet's side of the device plugin API with the kubelet's own gRPC library, measures, and prints JSON: one object per run.
//
//	client lifecycle -dir DIR [-restarts N] [-flip FILE -flips N] [-change FILE -to FILE,FILE...] [-prefer 1,2,4] -- PLUGIN ARG...
//	client calls -n N -rounds N [-size N -limit TIME -budget TIME] NAME=SOCKET#ID,ID...
//	client echo -socket SOCKET
//
// "lifecycle" starts a plugin and restarts the kubelet around it. "calls" times Allocate, or with a size GetPreferredAllocation, on servers that are already
// there, in alternating rounds, so that what the machine does meanwhile falls on all of them alike. "echo" is a bare grpc-go server for the comparison.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	pb "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

type summary struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50_ms"`
	P90 float64 `json:"p90_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
	Cut float64 `json:"cut_ms"` // a call took longer than this, and was the last
}

func summarise(d []time.Duration) *summary {
	if len(d) == 0 {
		return nil
	}
	sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
	at := func(p float64) float64 { return float64(d[int(float64(len(d)-1)*p+0.5)].Nanoseconds()) / 1e6 }
	return &summary{len(d), at(.5), at(.9), at(.99), at(1), 0}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

type registration struct {
	pb.UnimplementedRegistrationServer
	seen chan *pb.RegisterRequest
}

func (r *registration) Register(_ context.Context, q *pb.RegisterRequest) (*pb.Empty, error) {
	r.seen <- q
	return &pb.Empty{}, nil
}

// kubelet is one life of a kubelet: its socket, and the connection to the plugin that registered.
type kubelet struct {
	dir    string
	server *grpc.Server
	reg    *registration
	conn   *grpc.ClientConn
	lists  chan *pb.ListAndWatchResponse
	born   time.Time
}

// start does what a kubelet does first: it removes every socket in the directory and binds its own.
func start(dir string) *kubelet {
	entries, err := os.ReadDir(dir)
	must(err)
	for _, e := range entries {
		if e.Type()&os.ModeSocket != 0 {
			must(os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	k := &kubelet{dir: dir, server: grpc.NewServer(), reg: &registration{seen: make(chan *pb.RegisterRequest, 64)}}
	pb.RegisterRegistrationServer(k.server, k.reg)
	l, err := net.Listen("unix", filepath.Join(dir, "kubelet.sock"))
	must(err)
	k.born = time.Now()
	go k.server.Serve(l)
	return k
}

func (k *kubelet) waitRegister(limit time.Duration) *pb.RegisterRequest {
	select {
	case q := <-k.reg.seen:
		return q
	case <-time.After(limit):
		must(fmt.Errorf("no Register within %v", limit))
		return nil
	}
}

func dial(path string) *grpc.ClientConn {
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	must(err)
	return conn
}

// follow reads the plugin's lists for as long as this kubelet lives.
func (k *kubelet) follow(q *pb.RegisterRequest) pb.DevicePluginClient {
	k.conn = dial(filepath.Join(k.dir, q.Endpoint))
	c := pb.NewDevicePluginClient(k.conn)
	_, err := c.GetDevicePluginOptions(context.Background(), &pb.Empty{})
	must(err)
	stream, err := c.ListAndWatch(context.Background(), &pb.Empty{})
	must(err)
	k.lists = make(chan *pb.ListAndWatchResponse, 1024)
	lists := k.lists
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				close(lists)
				return
			}
			lists <- m
		}
	}()
	return c
}

func (k *kubelet) waitList(limit time.Duration, good func(*pb.ListAndWatchResponse) bool) *pb.ListAndWatchResponse {
	deadline := time.After(limit)
	for {
		select {
		case m, ok := <-k.lists:
			if !ok {
				must(fmt.Errorf("the stream ended"))
			}
			if good(m) {
				return m
			}
		case <-deadline:
			must(fmt.Errorf("no such list within %v", limit))
		}
	}
}

func (k *kubelet) die() {
	if k.conn != nil {
		k.conn.Close()
	}
	k.server.Stop()
}

func healthy(m *pb.ListAndWatchResponse) int {
	n := 0
	for _, d := range m.Devices {
		if d.Health == pb.Healthy {
			n++
		}
	}
	return n
}

func memory(pid int) map[string]float64 {
	out := map[string]float64{}
	for file, keys := range map[string][]string{"status": {"VmRSS:", "VmHWM:"}, "smaps_rollup": {"Pss:"}} {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		for _, line := range strings.Split(string(text), "\n") {
			f := strings.Fields(line)
			for _, k := range keys {
				if len(f) > 1 && f[0] == k {
					v, _ := strconv.ParseFloat(f[1], 64)
					out[strings.TrimSuffix(k, ":")+"_MiB"] = v / 1024
				}
			}
		}
	}
	return out
}

func lifecycle(args []string) {
	fs := flag.NewFlagSet("lifecycle", flag.ExitOnError)
	dir := fs.String("dir", "", "device-plugins directory")
	restarts := fs.Int("restarts", 0, "kubelet restarts")
	flip := fs.String("flip", "", "file whose removal makes a device unhealthy")
	flips := fs.Int("flips", 0, "")
	change := fs.String("change", "", "file that is replaced")
	to := fs.String("to", "", "what replaces it, one after the other; each makes one more device unhealthy")
	prefer := fs.String("prefer", "", "sizes for GetPreferredAllocation")
	calls := fs.Int("calls", 200, "calls per size")
	must(fs.Parse(args))
	k := start(*dir)
	cmd := exec.Command(fs.Arg(0), fs.Args()[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	began := time.Now()
	must(cmd.Start())
	stop := func() { cmd.Process.Signal(syscall.SIGTERM); cmd.Wait() }
	defer stop()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() { <-interrupted; stop(); os.Exit(1) }()

	q := k.waitRegister(60 * time.Second)
	toRegister := time.Since(began)
	c := k.follow(q)
	first := k.waitList(60*time.Second, func(m *pb.ListAndWatchResponse) bool { return len(m.Devices) > 0 })
	toList := time.Since(began)
	total := len(first.Devices)
	out := map[string]any{"resource": q.ResourceName, "devices": total, "start_to_register_ms": ms(toRegister), "start_to_list_ms": ms(toList)}

	var ids []string
	for _, d := range first.Devices {
		ids = append(ids, d.ID)
	}
	sort.Strings(ids)
	preferred := map[string]*summary{}
	for _, size := range strings.FieldsFunc(*prefer, func(r rune) bool { return r == ',' }) {
		n, err := strconv.Atoi(size)
		must(err)
		var times []time.Duration
		for i := 0; i < *calls; i++ {
			request := &pb.PreferredAllocationRequest{ContainerRequests: []*pb.ContainerPreferredAllocationRequest{{AvailableDeviceIDs: ids, AllocationSize: int32(n)}}}
			t := time.Now()
			_, err := c.GetPreferredAllocation(context.Background(), request)
			must(err)
			times = append(times, time.Since(t))
		}
		preferred[size] = summarise(times)
	}
	out["preferred"] = preferred

	var flipTimes []time.Duration
	for i := 0; i < *flips; i++ {
		time.Sleep(200 * time.Millisecond)
		t := time.Now()
		must(os.Remove(*flip))
		k.waitList(10*time.Second, func(m *pb.ListAndWatchResponse) bool { return healthy(m) < total })
		flipTimes = append(flipTimes, time.Since(t))
		time.Sleep(200 * time.Millisecond)
		must(os.WriteFile(*flip, nil, 0o600))
		k.waitList(10*time.Second, func(m *pb.ListAndWatchResponse) bool { return healthy(m) == total })
	}
	out["flip"] = summarise(flipTimes)

	changes := []float64{}
	for i, path := range strings.FieldsFunc(*to, func(r rune) bool { return r == ',' }) {
		if i == 0 {
			time.Sleep(time.Second) // what happens before a plugin listens for events is not its matter
		}
		time.Sleep(200 * time.Millisecond)
		t := time.Now()
		must(os.Rename(path, *change))
		k.waitList(10*time.Second, func(m *pb.ListAndWatchResponse) bool { return healthy(m) == total-i-1 })
		changes = append(changes, ms(time.Since(t)))
	}
	out["changes_ms"] = changes

	var register, list []time.Duration
	for i := 0; i < *restarts; i++ {
		k.die()
		time.Sleep(time.Duration(200+37*(i%10)) * time.Millisecond)
		k = start(*dir)
		q = k.waitRegister(30 * time.Second)
		register = append(register, time.Since(k.born))
		k.follow(q)
		k.waitList(30*time.Second, func(m *pb.ListAndWatchResponse) bool { return len(m.Devices) == total })
		list = append(list, time.Since(k.born))
	}
	out["restart_to_register"], out["restart_to_list"] = summarise(register), summarise(list)
	time.Sleep(time.Second)
	out["memory"] = memory(cmd.Process.Pid)
	must(json.NewEncoder(os.Stdout).Encode(out))
}

func calls(args []string) {
	fs := flag.NewFlagSet("calls", flag.ExitOnError)
	n := fs.Int("n", 500, "calls per round")
	rounds := fs.Int("rounds", 5, "")
	gap := fs.Duration("gap", 0, "pause between calls")
	size := fs.Int("size", 0, "ask for so many preferred devices instead of allocating")
	limit := fs.Duration("limit", time.Minute, "a server that takes longer for one call is not asked again")
	budget := fs.Duration("budget", time.Hour, "no more calls of a server once all of them took so long; the warm-up has a tenth of it")
	must(fs.Parse(args))
	times := map[string][]time.Duration{}
	spent := map[string]time.Duration{}
	cut := map[string]bool{}
	clients := map[string]pb.DevicePluginClient{}
	ids := map[string][]string{}
	var names []string
	for _, pair := range fs.Args() {
		name, path, _ := strings.Cut(pair, "=")
		path, list, _ := strings.Cut(path, "#")
		ids[name] = strings.Split(list, ",")
		names = append(names, name)
		clients[name] = pb.NewDevicePluginClient(dial(path))
	}
	call := func(name string) error {
		ctx, cancel := context.WithTimeout(context.Background(), *limit)
		defer cancel()
		if *size > 0 {
			request := &pb.ContainerPreferredAllocationRequest{AvailableDeviceIDs: ids[name], AllocationSize: int32(*size)}
			_, err := clients[name].GetPreferredAllocation(ctx, &pb.PreferredAllocationRequest{ContainerRequests: []*pb.ContainerPreferredAllocationRequest{request}})
			return err
		}
		request := &pb.ContainerAllocateRequest{DevicesIds: ids[name]}
		_, err := clients[name].Allocate(ctx, &pb.AllocateRequest{ContainerRequests: []*pb.ContainerAllocateRequest{request}})
		return err
	}
	for round := -1; round < *rounds; round++ {
		allowed := *budget
		if round < 0 { // the first round warms up
			allowed /= 10
		}
		for _, name := range names {
			for i := 0; i < *n && spent[name] < allowed && !cut[name]; i++ {
				time.Sleep(*gap)
				t := time.Now()
				err := call(name)
				took := time.Since(t)
				if status.Code(err) == codes.DeadlineExceeded {
					cut[name] = true
					break
				}
				must(err)
				spent[name] += took
				if round >= 0 {
					times[name] = append(times[name], took)
				}
			}
		}
	}
	out := map[string]*summary{}
	for _, name := range names {
		out[name] = summarise(times[name])
		if cut[name] {
			out[name] = &summary{Cut: ms(*limit)}
		}
	}
	must(json.NewEncoder(os.Stdout).Encode(out))
}

type bare struct {
	pb.UnimplementedDevicePluginServer
}

func (bare) Allocate(context.Context, *pb.AllocateRequest) (*pb.AllocateResponse, error) {
	spec := &pb.DeviceSpec{ContainerPath: "/dev/fuse", HostPath: "/dev/fuse", Permissions: "rw"}
	return &pb.AllocateResponse{ContainerResponses: []*pb.ContainerAllocateResponse{{Devices: []*pb.DeviceSpec{spec}}}}, nil
}

func echo(args []string) {
	fs := flag.NewFlagSet("echo", flag.ExitOnError)
	path := fs.String("socket", "", "")
	must(fs.Parse(args))
	l, err := net.Listen("unix", *path)
	must(err)
	s := grpc.NewServer()
	pb.RegisterDevicePluginServer(s, bare{})
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, os.Interrupt, syscall.SIGTERM)
	go func() { <-ended; s.Stop() }()
	must(s.Serve(l))
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

func main() {
	modes := map[string]func([]string){"lifecycle": lifecycle, "calls": calls, "echo": echo}
	if len(os.Args) < 2 || modes[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: client lifecycle|calls|echo ...")
		os.Exit(2)
	}
	modes[os.Args[1]](os.Args[2:])
}
