package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync"

	"github.com/mintmark-dev/mintmark/api/middleware"
)

// order of somebody.
type order struct {
	ID    string `json:"id"`
	Owner string `json:"owner"`
	Item  string `json:"item"`
}

// orders keeps orders in memory.
type orders struct {
	guard *middleware.Guard

	mu   sync.Mutex
	byID map[string]order
}

// newOrders says what each route needs.
func newOrders(guard *middleware.Guard) http.Handler {
	o := &orders{guard: guard, byID: map[string]order{}}
	mux := http.NewServeMux()
	mux.Handle("GET /orders/{id}", guard.Require("orders:read")(http.HandlerFunc(o.get)))
	mux.Handle("POST /orders", guard.Require("orders:write")(http.HandlerFunc(o.place)))
	mux.Handle("DELETE /orders/{id}", guard.Require("orders:write")(http.HandlerFunc(o.cancel)))
	return mux
}

func (o *orders) find(id string) (order, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	found, ok := o.byID[id]
	return found, ok
}

func (o *orders) get(w http.ResponseWriter, r *http.Request) {
	found, ok := o.find(r.PathValue("id"))
	if !ok {
		http.NotFound(w, r)
		return
	}
	answer(w, http.StatusOK, found)
}

func (o *orders) place(w http.ResponseWriter, r *http.Request) {
	who, ok := middleware.FromContext(r.Context())
	var asked order
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&asked); err != nil || !ok || asked.Item == "" {
		http.Error(w, "send an item", http.StatusBadRequest)
		return
	}
	o.mu.Lock()
	placed := order{ID: strconv.Itoa(len(o.byID) + 1), Owner: who.Subject, Item: asked.Item}
	o.byID[placed.ID] = placed
	o.mu.Unlock()
	answer(w, http.StatusCreated, placed)
}

// cancel asks about this one order: a permission says what may be done to orders, an
// AccessPolicy to which.
func (o *orders) cancel(w http.ResponseWriter, r *http.Request) {
	found, ok := o.find(r.PathValue("id"))
	if !ok {
		http.NotFound(w, r)
		return
	}
	err := o.guard.Allowed(r.Context(), "orders:write", middleware.Resource{Type: "order", ID: found.ID, Owner: found.Owner})
	switch {
	case errors.Is(err, middleware.ErrForbidden), errors.Is(err, middleware.ErrUnauthenticated):
		http.Error(w, "not your order", http.StatusForbidden)
	case err != nil:
		http.Error(w, "try again", http.StatusServiceUnavailable)
	default:
		o.mu.Lock()
		delete(o.byID, found.ID)
		o.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
