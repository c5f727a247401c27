package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	kjson "sigs.k8s.io/json"

	"github.com/mintmark-dev/mintmark/api/v1alpha1"
	"github.com/mintmark-dev/mintmark/internal/server/listwatch"
)

// Of a credential the server needs who it is, its spec, its record and its seal: a
// fifth of what the API server sends. The rest (managed fields, the last applied
// manifest, conditions) is passed over without being decoded, which is what makes a
// server start sooner than a typed list of the same objects would take, and one object
// at a time is held, never a list.

// slimSource is the source of one kind of credential, of one namespace or of all. Its
// objects have nothing in status but record and seal, and of metadata what decodeMeta
// names.
func (c *reader) slimSource(kind v1alpha1.Kind, resource, namespace string) listwatch.Source {
	make := func() v1alpha1.Credential {
		if kind == v1alpha1.KindAPIKey {
			return new(v1alpha1.APIKey)
		}
		return new(v1alpha1.ServiceToken)
	}
	open := func(ctx context.Context, options metav1.ListOptions) (io.ReadCloser, error) {
		r := c.rest.Get().Resource(resource).VersionedParams(&options, c.params)
		if namespace != "" {
			r = r.Namespace(namespace)
		}
		return r.Stream(ctx)
	}
	return listwatch.Source{
		List: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			body, err := open(ctx, options)
			if err != nil {
				return nil, err
			}
			defer body.Close()
			text, err := io.ReadAll(body)
			if err != nil {
				return nil, err
			}
			return decodeList(text, make)
		},
		Watch: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			body, err := open(ctx, options)
			if err != nil {
				return nil, err
			}
			lines := &eventLines{body: body, in: bufio.NewReaderSize(body, 1<<16), make: make}
			return watch.NewStreamWatcher(lines, errorReporter{}), nil
		},
	}
}

// slimList is a list of credentials.
type slimList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []v1alpha1.Credential
}

// DeepCopyObject makes it a runtime.Object. Nothing copies one.
func (l *slimList) DeepCopyObject() runtime.Object {
	c := *l
	c.Items = nil
	for _, o := range l.Items {
		c.Items = append(c.Items, o.DeepCopyObject().(v1alpha1.Credential))
	}
	return &c
}

func decodeList(text []byte, make func() v1alpha1.Credential) (*slimList, error) {
	list := new(slimList)
	err := eachField(text, func(key, value []byte) error {
		switch string(key) {
		case "metadata":
			return kjson.UnmarshalCaseSensitivePreserveInts(value, &list.ListMeta)
		case "items":
			return eachElement(value, func(element []byte) error {
				o := make()
				list.Items = append(list.Items, o)
				return decodeCredential(element, o)
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("the API server's list cannot be read: %w", err)
	}
	return list, nil
}

// eventLines decodes the events of a watch: in JSON, one to a line, with the type before
// the object.
type eventLines struct {
	body io.Closer
	in   *bufio.Reader
	line []byte
	make func() v1alpha1.Credential
}

// maxLine bounds an event: etcd takes no object of more than a megabyte and a half.
const maxLine = 16 << 20

// Close ends the watch, and with it a Decode that waits.
func (l *eventLines) Close() { _ = l.body.Close() }

// Decode gives the next event.
func (l *eventLines) Decode() (watch.EventType, runtime.Object, error) {
	line, err := l.next()
	if err != nil {
		return "", nil, err
	}
	kind, object, ok := splitEvent(line)
	if !ok {
		return "", nil, errors.New("the API server's watch sends what is no event")
	}
	if kind == watch.Error {
		status := new(metav1.Status)
		return kind, status, kjson.UnmarshalCaseSensitivePreserveInts(object, status)
	}
	c := l.make()
	return kind, c, decodeCredential(object, c)
}

// next is the next line. It holds until the one after is asked for.
func (l *eventLines) next() ([]byte, error) {
	l.line = l.line[:0]
	for {
		part, err := l.in.ReadSlice('\n')
		if err == nil && len(l.line) == 0 {
			return part, nil
		}
		l.line = append(l.line, part...)
		switch {
		case err == nil:
			return l.line, nil
		case len(l.line) > maxLine:
			return nil, fmt.Errorf("the API server's watch sends an event of more than %d bytes", maxLine)
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(l.line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

// splitEvent takes {"type":"ADDED","object":{}} apart.
func splitEvent(line []byte) (kind watch.EventType, object []byte, ok bool) {
	rest, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte(`{"type":"`))
	if !ok {
		return "", nil, false
	}
	name, rest, ok := bytes.Cut(rest, []byte(`","object":`))
	if !ok || len(rest) == 0 || rest[len(rest)-1] != '}' {
		return "", nil, false
	}
	switch kind = watch.EventType(name); kind {
	case watch.Added, watch.Modified, watch.Deleted, watch.Bookmark, watch.Error:
		return kind, rest[:len(rest)-1], true
	}
	return "", nil, false
}

// errorReporter makes of what went wrong in a watch an event of it.
type errorReporter struct{}

func (errorReporter) AsObject(err error) runtime.Object {
	status := apierrors.NewInternalError(err).ErrStatus
	return &status
}

// decodeCredential reads what is needed of a credential.
func decodeCredential(text []byte, into v1alpha1.Credential) error {
	return eachField(text, func(key, value []byte) error {
		switch string(key) {
		case "metadata":
			return decodeMeta(value, into)
		case "spec":
			return kjson.UnmarshalCaseSensitivePreserveInts(value, into.CredentialSpec())
		case "status":
			return decodeStatus(value, into.CredentialStatus())
		}
		return nil
	})
}

// decodeMeta reads of the metadata what says who it is and since when, and the
// annotation that ends the list a watch begins with.
func decodeMeta(text []byte, into metav1.Object) error {
	return eachField(text, func(key, value []byte) error {
		switch string(key) {
		case "name":
			return decodeString(value, into.SetName)
		case "namespace":
			return decodeString(value, into.SetNamespace)
		case "uid":
			return decodeString(value, func(uid string) { into.SetUID(types.UID(uid)) })
		case "resourceVersion":
			return decodeString(value, into.SetResourceVersion)
		case "creationTimestamp":
			var t metav1.Time
			err := kjson.UnmarshalCaseSensitivePreserveInts(value, &t)
			into.SetCreationTimestamp(t)
			return err
		case "deletionTimestamp":
			var t *metav1.Time
			err := kjson.UnmarshalCaseSensitivePreserveInts(value, &t)
			into.SetDeletionTimestamp(t)
			return err
		case "labels":
			var labels map[string]string
			err := kjson.UnmarshalCaseSensitivePreserveInts(value, &labels)
			into.SetLabels(labels)
			return err
		case "annotations":
			return decodeAnnotations(value, into)
		}
		return nil
	})
}

func decodeAnnotations(text []byte, into metav1.Object) error {
	return eachField(text, func(key, value []byte) error {
		if string(key) != metav1.InitialEventsAnnotationKey {
			return nil
		}
		return decodeString(value, func(v string) { into.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: v}) })
	})
}

func decodeStatus(text []byte, into *v1alpha1.CredentialStatus) error {
	return eachField(text, func(key, value []byte) error {
		switch string(key) {
		case "record":
			return kjson.UnmarshalCaseSensitivePreserveInts(value, &into.Record)
		case "seal":
			return decodeString(value, func(seal string) { into.Seal = seal })
		}
		return nil
	})
}

func decodeString(value []byte, set func(string)) error {
	// Names, UIDs and seals have nothing to unescape.
	if len(value) >= 2 && value[0] == '"' && bytes.IndexByte(value, '\\') < 0 && isPlain(value) {
		set(string(value[1 : len(value)-1]))
		return nil
	}
	var s string
	if err := kjson.UnmarshalCaseSensitivePreserveInts(value, &s); err != nil {
		return err
	}
	set(s)
	return nil
}

func isPlain(value []byte) bool {
	for _, b := range value {
		if b < ' ' || b > '~' {
			return false
		}
	}
	return true
}
